"""Views that change what a model computes, to see what its parts do."""
