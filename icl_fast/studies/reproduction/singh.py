"""All claims of Singh 2025, in the order of the thesis."""

from icl_fast.studies.reproduction import singh_clamps, singh_data, singh_heads, singh_induction, singh_strategies

CLAIMS = (
    *singh_data.CLAIMS,
    *singh_induction.CLAIMS,
    *singh_heads.CLAIMS,
    *singh_clamps.CLAIMS,
    *singh_strategies.CLAIMS,
)
