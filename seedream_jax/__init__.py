"""seedream_jax: train, tune, distil, judge and export a bilingual text-to-image model in JAX."""
