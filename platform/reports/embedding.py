"""Projects vectors to two dimensions, for the embedding of Fig. 1.

Letters: n clips  D width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def embed(vectors: NDArray[np.float32]) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Project (n, D) vectors to two dimensions, by PCA and by every other installed method (UMAP, else t-SNE).

    Returns:
        (n, 2) points by method, and the share of the variance that the two principal components have.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])  # fixed, since a component's sign is arbitrary
    points = {"PCA": (left * sizes * signs)[:, :2].astype(np.float32)}
    if points["PCA"].shape[1] < 2:
        points["PCA"] = np.pad(points["PCA"], ((0, 0), (0, 1)))
    for name, project in (("UMAP", _umap), ("t-SNE", _tsne)):
        found = project(centred.astype(np.float32))
        if found is not None:
            points[name] = found
            break
    total = float((sizes**2).sum())
    return points, float((sizes[:2] ** 2).sum() / total) if total else 0.0


def _umap(vectors: NDArray[np.float32]) -> NDArray[np.float32] | None:
    try:
        import umap  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    if len(vectors) < 10:
        return None
    return np.asarray(umap.UMAP(random_state=0).fit_transform(vectors), np.float32)


def _tsne(vectors: NDArray[np.float32]) -> NDArray[np.float32] | None:
    try:
        from sklearn.manifold import TSNE  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None
    if len(vectors) < 10:
        return None
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return np.asarray(TSNE(random_state=0, init="pca", perplexity=perplexity).fit_transform(vectors), np.float32)
