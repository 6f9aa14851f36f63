"""A data set of your own: a folder of videos (or folders of pictures), with a list or one folder per class.

- `listing` reads `clips.csv` or the folders, `description` reads `data.yaml`, `source` reads frames, `facts` is for a spec.
- `look` and `experiment` write all of it for a folder that has only videos (`starlab data init`).
- `annotations` turns PYSKL's pickles and COCO's JSON into a file of joints; `pickles` reads a pickle without running its code.

It runs in the driver, in decode tasks and in workers. It imports decoders and, of this package, `starlab.pipelines`; never Ray.
"""
