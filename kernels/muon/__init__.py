"""Momentum, orthogonalisation, decay and update of all convolution weights as one op."""

from .op import muon_update_, muon_update_ref_

__all__ = ["muon_update_", "muon_update_ref_"]
