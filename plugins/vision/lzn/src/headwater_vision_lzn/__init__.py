"""vision-lzn: the Latent Zoning Network on rectified flow."""
