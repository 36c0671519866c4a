"""The environments that GFlowNet papers share."""
