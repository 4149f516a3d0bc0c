"""Files on disk, whatever they mean: JSON, TOML, NDJSON, atomic replacement, locks, the safetensors container."""
