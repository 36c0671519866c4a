"""The data sets that vision-lzn trains on."""
