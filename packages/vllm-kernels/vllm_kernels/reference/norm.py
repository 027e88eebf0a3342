import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    values, scale = x.to(wide), weight.to(wide)
    if unit_offset:
        scale = 1 + scale
    return (values / torch.sqrt(values.square().mean(-1, keepdim=True) + eps) * scale).to(x.dtype)


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps, unit_offset), new_residual


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    values = x.to(wide)
    centred = values - values.mean(-1, keepdim=True)
    result = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        result = result * weight.to(wide)
    if bias is not None:
        result = result + bias.to(wide)
    return result.to(x.dtype)


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    new_residual = x + residual
    return layer_norm(new_residual, weight, bias, eps), new_residual
