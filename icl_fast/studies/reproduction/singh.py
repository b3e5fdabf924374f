"""All claims of Singh 2025, in the order of the thesis."""

from icl_fast.studies.reproduction import singh_data, singh_induction, singh_strategies

CLAIMS = (*singh_data.CLAIMS, *singh_induction.CLAIMS, *singh_strategies.CLAIMS)
