"""The engine: trees, meshes, shardings, optimisers, checkpoints, metrics. It knows no model."""
