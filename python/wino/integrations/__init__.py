"""Foreign models, decoders and harnesses on our loop, one small file each."""
