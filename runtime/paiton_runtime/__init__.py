"""The thin runtime: opens a bundle, maps its weights, rebuilds its plans and generates.

Imports nothing of the build side and no framework; `import paiton_runtime` itself imports nothing at all.
"""

VERSION = "0.1.0"
