r"""The VAE: f8, 16 channels, reconstruction + KL + perceptual + a late adversary.

  python -m seedream_jax.train --config experiments/autoencoder.py:nano,data=OUT --workdir /tmp/vae

Presets: nano (2 CPU cores), small (one GPU), base (the SD3/FLUX shape, 8 GPUs), full (the same on a pod).
"""

from experiments import common

PRESETS = {
  "nano": dict(batch=16, vae="nano", lr=1e-3, steps=4_000, fsdp=1),
  "small": dict(batch=64, vae="small", lr=2e-4, steps=100_000, fsdp=1),
  "base": dict(batch=128, vae="flux", lr=1e-4, steps=300_000, fsdp=1),
  "full": dict(batch=256, vae="flux", lr=1e-4, steps=500_000, fsdp=-1),
}


def get_config(arg=None):
  arg = common.parse_arg(arg, presets=tuple(PRESETS), data="out/posters", steps=0)
  preset, nano = PRESETS[arg.preset], arg.preset == "nano"
  steps = arg.steps or preset["steps"]
  config = common.base()
  config.stage = dict(
    name="autoencode",
    adversary_start_percent=96.0,
    latent_noise=0.5,  # ours; undisclosed: what the DiT hands the decoder is never exact
  )
  config.model = dict(
    vae=dict(variant=preset["vae"]), critic=dict(variant="nano" if nano else "base")
  )
  stream = dict(features=("id_B", "image_BHWC"), batch_size=preset["batch"])
  config.data.streams = dict(
    train=dict(sources=((f"{arg.data}:train", 1.0),), seed=0, **stream),
    val=dict(sources=((f"{arg.data}:val", 1.0),), seed=0, **stream),
  )
  config.optim.lr = preset["lr"]
  config.optim.warmup_steps = 100 if nano else 1_000
  config.optim.trainable = (
    ("stats/.*", False),
    (".*", True),
  )  # running moments, assigned by the stage
  config.optim.ema = dict(eval=(".*", 0.998 if nano else 0.9999))
  config.optim.players = dict(
    critic=dict(
      lr=preset["lr"] / 2,
      b1=0.5,
      ema=dict(),
      trainable=((".*", True),),
      start_steps=int(0.95 * steps),
    )
  )
  config.sharding.mesh = common.mesh(preset["fsdp"])
  config.train.total_steps = steps
  config.train.export_dtype = "float32"
  config.eval.evaluators = dict(
    val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=4),
  )
  return config
