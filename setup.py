"""Package definition; versions are pairs (jax, flax) known to work together, see requirements/."""

import setuptools

setuptools.setup(
  name="seedream_jax",
  version="0.1.0",
  description="Bilingual text-to-image training in JAX: a Seedream-2.0-style system",
  license="Apache-2.0",
  python_requires=">=3.11",
  package_data={"seedream_jax.eval": ["worlds/*.json"], "experiments": ["vocabulary.json"]},
  packages=setuptools.find_packages(include=["seedream_jax*", "experiments*", "data_pipelines*"]),
  install_requires=[
    "jax>=0.10.2,<0.10.3; python_version < '3.12'",
    "flax>=0.12.8,<0.12.9; python_version < '3.12'",
    # jax 0.12 is not tried yet; flax 0.12.8 and 0.12.9 do not import on jax 0.11.2.
    "jax>=0.11.2,<0.12; python_version >= '3.12'",
    "flax>=0.12.12,<0.13; python_version >= '3.12'",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "grain>=0.2.18,<0.3",
    "array_record>=0.8.6,<0.9",
    "tensorflow-datasets>=4.9.10,<5",
    "pyarrow>=18",  # published preferences are Parquet; tensorflow-datasets brings it too
    "sentencepiece>=0.2.1,<0.3",
    "tokenizers>=0.23,<1",
    "ml-collections>=1.1,<2",
    "absl-py>=2.1",
    "einops>=0.8,<0.9",
    "safetensors>=0.6,<1",
    "pillow>=11",
    "threadpoolctl>=3.5,<4",
    "tqdm>=4.66",
    "tensorboardX>=2.6.4,<3",
    "emoji>=2.14",  # Unicode CLDR names of the poster subjects, in English and Chinese
  ],
  extras_require={
    "gpu": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "plan": ["libtpu"],
    "ocr": ["rapidocr_onnxruntime>=1.4,<1.5"],  # PP-OCR models inside the wheel
    # Parity, export to ONNX and the peers of benchmarks/; an export itself needs none of them.
    "torch": [
      "torch>=2.13,<2.14",
      "transformers>=5.24,<6",
      "diffusers>=0.42,<0.43",
      "onnx>=1.23,<2",
      "onnxruntime>=1.23,<2",
      "onnxscript>=0.5,<1",
    ],
    "dev": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9", "import-linter>=2.1"],
  },
)
