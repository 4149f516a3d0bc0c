"""Running a model fast: kernels for decoding and prefill, CUDA graphs, batches, tensor parallelism."""
