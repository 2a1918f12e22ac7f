"""Float models, from timm and from files."""
