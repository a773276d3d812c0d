from sb3_mbrl.algorithms.dhmbpo.dhmbpo import DHMBPO, SVG

__all__ = ["DHMBPO", "SVG"]
