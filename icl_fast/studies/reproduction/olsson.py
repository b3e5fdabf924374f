"""All claims of Olsson et al. 2022, in the order of the paper."""

from icl_fast.studies.reproduction import olsson_change

CLAIMS = (*olsson_change.CLAIMS,)
