"""Latents equal the VAE's mean, keep the order, resume by shard, and name their origin."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines import encode
from seedream_jax import types
from seedream_jax.data import loader, records, tokenizers, transforms
from seedream_jax.engine import checkpoint
from seedream_jax.models import vae
from tests.data import datasets


def fake_vae(image_BHWC: np.ndarray) -> np.ndarray:
  """Block means of 8x8 pixels, and the batch size as a check that batches are padded."""
  size, height, width, _ = image_BHWC.shape
  blocks = image_BHWC.reshape(size, height // 8, 8, width // 8, 8, 3)
  means_BHWC = blocks.mean(axis=(2, 4)) / 255
  return np.concatenate([means_BHWC, np.full_like(means_BHWC[..., :1], size)], axis=-1)


def fake_llm(ids_BL: np.ndarray) -> np.ndarray:
  """Each token's id, and the length of its bucket."""
  return np.stack([ids_BL, np.full_like(ids_BL, ids_BL.shape[1])], axis=-1).astype(np.float32)


def plan_of(path: str, **kwargs) -> encode.Plan:
  fields = dict(vae={"sha256": "v" * 64, "config": {"widths": [8]}}, **kwargs)
  return encode.Plan(records.open_split(path), **fields)


class EncodeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = self.enter_context(tempfile.TemporaryDirectory())
    self.data = datasets.write(f"{self.dir}/data", 23, shards=3, broken=(5,))
    self.out = f"{self.dir}/out"

  def encode(self, plan=None, out=None, **kwargs):
    kwargs.setdefault("batch_size", 4)
    return encode.encode(plan or plan_of(self.data), out or self.out, fake_vae, **kwargs)

  def digests(self, out=None) -> dict[str, str]:
    files = pathlib.Path(out or self.out).glob("*.array_record*")
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

  def test_records_keep_order_and_get_latents(self):
    report = self.encode()
    self.assertEqual(report, encode.Report(encoded=22, kept=0, dropped=1, complete=True))
    split = records.open_split(self.out)
    self.assertEqual(split.content, "latent")
    self.assertEqual([part.take for part in split.instructions], [7 - 1, 8, 8])
    keys = ("id", "latent", "latent_shape", "captions", "bucket", "scene", "height")
    rows = [row for row in range(23) if row != 5]
    for row, got in zip(rows, records.iterate(split, *keys), strict=True):
      want = datasets.example(row)
      self.assertEqual(got["id"], want["id"])
      latent_HWC = fake_vae(transforms.decode(want["image"].getvalue())[None])[0]
      latent_HWC[..., -1] = 4  # the padded batch
      np.testing.assert_array_equal(records.decode_latent(got), latent_HWC.astype(np.float16))
      self.assertEqual(got["captions"]["text"][1].decode(), want["captions"][1]["text"])
      self.assertEqual(got["scene"].decode(), want["scene"])
      self.assertEqual((got["bucket"].decode(), got["height"]), (want["bucket"], want["height"]))

  def test_an_interrupted_run_resumes_and_ends_alike(self):
    self.encode(out=f"{self.dir}/whole")
    seen = []

    def stop(count):
      seen.append(count)
      if len(seen) == 12:  # within the second shard
        raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      self.encode(progress=stop)
    with self.assertRaisesRegex(types.UserError, "no dataset_info.json"):
      records.open_split(self.out)
    counts = []
    report = self.encode(progress=counts.append)
    self.assertEqual((report.kept, report.encoded, report.dropped), (7, 16, 1))
    self.assertEqual(sum(counts), 23)
    self.assertEqual(self.digests(), self.digests(f"{self.dir}/whole"))
    self.assertEqual(self.encode().encoded, 0)

  def test_a_shard_cut_short_is_encoded_again(self):
    self.encode()
    want = self.digests()
    os.truncate(f"{self.out}/{records.shard_name('latents', 'train', 1, 3)}", 100)
    self.assertEqual(self.encode().encoded, 8)
    self.assertEqual(self.digests(), want)

  def test_tasks_share_the_shards(self):
    self.encode(out=f"{self.dir}/whole")
    first = self.encode(task=(1, 2))
    self.assertEqual((first.encoded, first.complete), (8, False))
    second = self.encode(task=(0, 2))
    self.assertEqual((second.encoded, second.complete), (14, True))
    self.assertEqual(self.digests(), self.digests(f"{self.dir}/whole"))
    self.assertLen(records.open_split(self.out), 22)

  def test_provenance(self):
    self.encode()
    manifest = records.open_split(self.out).manifest()
    source = records.open_split(self.data)
    self.assertEqual(manifest["vae_sha256"], "v" * 64)
    self.assertEqual(manifest["crop"], "resize_cover_center")
    split = manifest["splits"]["train"]
    self.assertEqual(split["source"]["manifest_sha256"], source.manifest_sha256())
    self.assertEqual(split["source"]["fingerprint"], source.fingerprint())
    self.assertEqual(split["num_dropped"], 1)
    self.assertIn("not a picture", split["dropped"]["5"])

  def test_other_models_or_sources_are_refused(self):
    self.encode()
    other = dataclasses.replace(plan_of(self.data), vae={"sha256": "w" * 64, "config": {}})
    with self.assertRaisesRegex(types.UserError, "holds vae .* give another folder"):
      self.encode(other)
    changed = datasets.write(f"{self.dir}/changed", 23, shards=3, first_id=1)
    with self.assertRaisesRegex(types.UserError, "that source or area has changed"):
      self.encode(plan_of(changed))
    self.encode(plan_of(datasets.write(f"{self.dir}/val", 5, split="val") + ":val"))
    self.assertLen(records.open_split(f"{self.out}:train"), 22)
    self.assertLen(records.open_split(f"{self.out}:val"), 5)

  def test_at_another_area(self):
    self.encode(plan_of(self.data, area=64))
    got = list(records.iterate(records.open_split(self.out), "bucket", "latent_shape"))
    self.assertEqual({r["bucket"].decode() for r in got}, {"48x80", "80x48", "64x64"})
    self.assertEqual(got[0]["latent_shape"].tolist(), [6, 10, 4])

  def test_pairs_reach_the_loader_the_preferred_first(self):
    pairs = datasets.write(f"{self.dir}/pairs", 9, content="images", broken=(5,))
    self.encode(plan_of(pairs))
    self.assertEqual(records.open_split(self.out).manifest()["splits"]["train"]["num_dropped"], 1)
    sources = lambda path: dict(sources=((path, 1.0),), batch_size=2)  # noqa: E731
    features = ("id_B", "latent_BRHWC", "size_B2")
    got = loader.Loader(dict(features=features, **sources(self.out)), None)
    want = {row["id"]: row for row in records.iterate(records.open_split(pairs), "id", "images")}
    for k in range(3):
      batch = got.batch(k)
      size = tuple(batch["size_B2"][0])
      for i, latent_RHWC in zip(batch["id_B"], batch["latent_BRHWC"]):
        images = [transforms.fit(transforms.decode(x), size) for x in want[i]["images"]]
        mean_RHWC = fake_vae(np.stack(images))[..., :3]
        np.testing.assert_array_equal(latent_RHWC[..., :3], mean_RHWC.astype(np.float16))
    with self.assertRaisesRegex(types.UserError, "holds sets of latents, but .* latent_BHWC"):
      loader.Loader(dict(features=("latent_BHWC",), **sources(self.out)), None)

  def test_values_beyond_float16_are_refused(self):
    with self.assertRaisesRegex(types.UserError, "record 0: .* float16 cannot hold"):
      encode.encode(plan_of(self.data), self.out, lambda x: fake_vae(x) * 1e9, batch_size=1)

  def test_text_features_reach_the_loader(self):
    tokenizer = datasets.tokenizer(self.dir)
    about = {"sha256": "l" * 64, "tokenizer_sha256": tokenizer.sha256}
    about["empty_features"] = encode.empty_features(fake_llm, tokenizer.eos_id)
    plan = plan_of(self.data, llm=about)
    self.encode(plan, encode_texts=fake_llm, tokenizer=tokenizer)
    features = ("id_B", "latent_BHWC", "llm_ids_BL", "llm_features_BLE", "llm_empty_BE")
    config = dict(
      sources=((self.out, 1.0),), features=features, batch_size=2, text_buckets=(8, 16, 64)
    )
    made = loader.Loader(config, tokenizer)
    for step in range(15):
      batch = made.batch(step)
      ids_BL, features_BLE = batch["llm_ids_BL"], batch["llm_features_BLE"]
      self.assertEqual(features_BLE.shape, (*ids_BL.shape, 2))
      np.testing.assert_array_equal(features_BLE[..., 0], ids_BL)  # padding is zero, as its id
      np.testing.assert_array_equal(batch["llm_empty_BE"][:, 0], [tokenizers.EOS] * 2)
    other = datasets.tokenizer(self.dir, num=20)
    with self.assertRaisesRegex(types.UserError, "features were made with tokenizer"):
      loader.Loader(config, other)

  @parameterized.parameters("1/1", "-1/2", "x", "0/0", "1")
  def test_bad_task(self, text):
    with self.assertRaisesRegex(types.UserError, "--task .* expected K/N"):
      encode._parse_task(text)

  def test_program(self):
    """The real VAE, from weights with a config beside them, by the command line."""
    fields = dict(variant="nano", widths=(8, 8), norm_groups=2)
    config = vae.make_config(**fields)
    part = types.Part.from_module(lambda rngs: vae.VAE(config, rngs=rngs))
    params = part.init(jax.random.key(0))
    checkpoint.save_weights(f"{self.dir}/w/vae.safetensors", params)
    text = json.dumps({"model": {"vae": fields}})
    pathlib.Path(self.dir, "w", "config.json").write_text(text)
    command = [sys.executable, "-m", "data_pipelines.encode", "--batch_size", "2"]
    command += ["--data", self.data, "--out", self.out, "--vae"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    root = pathlib.Path(encode.__file__).parents[1]

    def run(folder):
      return subprocess.run([*command, folder], cwd=root, env=env, capture_output=True, text=True)

    bad = run(f"{self.dir}/nowhere")
    self.assertEqual(bad.returncode, 2)
    self.assertRegex(bad.stderr.splitlines()[-1], "error: --vae .*vae.safetensors is missing")
    self.assertNotIn("Traceback", bad.stderr)
    good = run(f"{self.dir}/w")
    self.assertEqual(good.returncode, 0, good.stderr)
    self.assertEqual(json.loads(good.stdout.splitlines()[-1])["encoded"], 22)
    self.assertIn("23/23", good.stderr)  # the progress bar
    got = next(records.iterate(records.open_split(self.out), "latent", "latent_shape"))
    image_HWC = transforms.decode(datasets.example(0)["image"].getvalue())
    mean_BHWC, _ = part.bind(params).encode(transforms.to_float(image_HWC)[None])
    np.testing.assert_allclose(records.decode_latent(got), mean_BHWC[0], rtol=2e-3, atol=2e-3)
    manifest = records.open_split(self.out).manifest()
    weights = checkpoint.sha256(f"{self.dir}/w/vae.safetensors")
    self.assertEqual(manifest["vae_sha256"], weights)


if __name__ == "__main__":
  absltest.main()
