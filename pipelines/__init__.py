"""From the files of a data set to batches: readers, sampling, augmentation, schedule and stream."""
