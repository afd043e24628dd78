"""What an evaluation says of a rollout: one file per kind of diagnostic, each in fme's vocabulary and files."""
