"""What a variational autoencoder minimises: Kingma 2013, arXiv:1312.6114, equation 10, sample by sample.

-ELBO = reconstruction loss + KL divergence. No game: encoder and decoder descend the same loss, nothing
can be won early and no mode is dropped; what it costs is sharpness, since the mean of all images that
might have been is blurry. Refuses to own: networks, reduction.
"""

from __future__ import annotations

from torch import Tensor


def reconstruction_loss(images: Tensor, reconstructions: Tensor, sigma: float) -> Tensor:
    """-log N(x; x̂, σ²) without its constant, |x - x̂|² / 2σ² [N], of samples [N, …]."""
    return (images - reconstructions).square().flatten(1).sum(1) / (2 * sigma**2)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) [N], summed over latents [N, z_dim]: appendix B."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
