"""3D porous media by generative adversarial networks (Mosser, Dubrule, Blunt 2017)."""
