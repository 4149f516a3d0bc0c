"""What a model is, and how two models differ."""
