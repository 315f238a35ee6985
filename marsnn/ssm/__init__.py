"""State space layers: linear in the length of a sequence, constant in memory for each further token."""

from marsnn.ssm.base import SequenceLayer
from marsnn.ssm.convolution import causal_convolution
from marsnn.ssm.s4d import S4D, S4DState
from marsnn.ssm.scan import ssd_scan
from marsnn.ssm.ssd import SSD, SSDCore, SSDState

__all__ = ["S4D", "SSD", "S4DState", "SSDCore", "SSDState", "SequenceLayer", "causal_convolution", "ssd_scan"]
