"""What other programs wrote: the only code that knows fme's checkpoints. Old formats stop at this door."""
