"""Models with choices in them, and the parts they are made of: layers, blocks, backbones, heads, classifiers."""
