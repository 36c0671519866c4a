"""Tasks of gfn-oc."""
