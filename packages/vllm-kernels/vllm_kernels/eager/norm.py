import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    values, scale = x.to(wide), weight.to(wide)
    if unit_offset:
        scale = scale + 1
    inverse = values.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (values * inverse).mul_(scale).to(x.dtype)


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps, unit_offset), new_residual


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    new_residual = x + residual
    return layer_norm(new_residual, weight, bias, eps), new_residual
