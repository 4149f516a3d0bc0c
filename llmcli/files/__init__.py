"""Files on disk, whatever they mean: JSON, TOML, NDJSON, atomic replacement, the safetensors container."""
