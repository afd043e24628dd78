"""What a rollout leaves behind field by field: one file per noun, from ``data_writer:`` to the disk."""
