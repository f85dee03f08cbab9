"""Training: the mesh, the state, the step, references, checkpoints and the loop."""
