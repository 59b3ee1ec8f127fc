"""For every operator: how a gradient at its outputs becomes one at its inputs."""
