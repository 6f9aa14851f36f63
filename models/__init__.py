"""Models: the STAR-transformer, its cost and memory, and attention rollout, in torch alone.

Workers train and evaluate it; the driver builds it on the meta device to forecast a run. No Ray and no MLflow; the only file
read is that of the Kinetics-400 weights. Imports no other room.
"""
