"""CodeUnlearn: a codebook bottleneck in a model, and requests that delete codes from it without a gradient step."""
