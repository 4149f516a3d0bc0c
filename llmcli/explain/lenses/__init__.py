"""What the model would predict after each layer."""
