"""Whether JAX has a device to compute on."""

import jax

from wcjax.errors import InputError, cause


def check_devices() -> None:
    """Raises InputError if JAX has no device of the platform that JAX_PLATFORMS names."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: cuda without a GPU
        why = cause(error) if str(error) else "no GPU is visible"
        raise InputError(
            f"JAX finds no device for JAX_PLATFORMS={jax.config.jax_platforms}: {why}. Unset JAX_PLATFORMS, or install "
            "JAX for that platform on a machine that has one."
        ) from error
