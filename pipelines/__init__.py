"""Data: the files of a data set become clips, and clips become batches.

- Readers: `penn_action`, `ntu` and `store` read clips from disk; `datasets` is the table of data sets, `sources` opens one.
- Batches: `schedule` orders the clips, `sampling` picks frames, `augment` crops them, `loading` does this for one clip and
  `stream` for a run.
- Stores: `prepare` writes what `shards` describes and `store` reads; `storage` is a folder on a disk or on S3.

It runs in the driver, in the training workers and in Ray Data tasks. It imports NumPy, PyArrow and decoders; only `stream` and
`prepare` import Ray. It never imports torch, MLflow, the models or the platform, and `batch` imports NumPy alone.
"""
