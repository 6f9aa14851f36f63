"""Generated people: two small data sets in the formats of Penn Action and NTU RGB+D, made without filming anybody.

- `people` moves bodies, `drawing` paints them, `kinect` makes a depth sensor's skeletons of them.
- `penn_action` and `ntu` put these together into clips and write a data set; `folder` writes it in parallel.

It runs in the driver and in the processes that it starts, the first time that a generated data set is used. It imports NumPy,
SciPy, decoders and, of this package, the formats in `starlab.pipelines`; never Ray.
"""
