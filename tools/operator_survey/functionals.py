"""Ordinary functionals of a (3, 6) tensor in float64, one line each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

W = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()


class Around(nn.Module):
    """A functional behind a linear layer."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(2)
        self.function, self.layer = function, nn.Linear(6, 6, bias=False)
        self.double().eval()

    def forward(self, x):
        return self.function(self.layer(x))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


def derivative_inside(x):
    with torch.enable_grad():
        y = x.clone().requires_grad_()
        return torch.autograd.grad(((y @ W).tanh()).sum(), y, create_graph=True)[0]


def constant_scale(x):
    with torch.no_grad():
        s = (x @ W).abs().amax()
    return x / s


#: the functionals of ``wild_op_survey``
FUNCTIONALS = {
    "cosine_similarity": lambda x: F.cosine_similarity(x, x @ W),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x @ W),
    "cdist": lambda x: torch.cdist(x, x @ W),
    "cdist_p1": lambda x: torch.cdist(x, x @ W, p=1.0),
    "bilinear": lambda x: F.bilinear(x, x @ W, W.view(1, 6, 6)),
    "normalize": lambda x: F.normalize(x),
    "logsumexp": lambda x: x.logsumexp(-1),
    "cross_entropy": lambda x: -F.cross_entropy(x, torch.tensor([1, 2, 0]), reduction="none"),
    "bce_logits": lambda x: -F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none").sum(-1),
    "nll": lambda x: -F.nll_loss(x, torch.tensor([1, 2, 0]), reduction="none"),
    "mse_loss": lambda x: F.mse_loss(x, W[:3], reduction="none").sum(-1),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, W[:3], reduction="none").sum(-1),
    "huber": lambda x: F.huber_loss(x, W[:3], reduction="none").sum(-1),
    "kl_div": lambda x: F.kl_div(x.log_softmax(-1), W[:3].softmax(-1), reduction="none").sum(-1),
    "triplet": lambda x: F.triplet_margin_loss(x, x @ W, W[:3], reduction="none"),
    "grid_sample": lambda x: F.grid_sample(
        x.view(1, 1, 3, 6),
        F.affine_grid(torch.eye(2, 3).double()[None] * 0.7, (1, 1, 3, 6), align_corners=False),
        align_corners=False,
    ).flatten(1),
    "fold_unfold": lambda x: F.fold(F.unfold(x.view(1, 1, 3, 6), 2), (3, 6), 2).view(3, 6),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x[:, :4].reshape(3, 4, 1, 1), 2).flatten(1),
    "interp_bilinear": lambda x: F.interpolate(x.view(1, 1, 3, 6), scale_factor=2, mode="bilinear").flatten(1),
    "interp_bicubic": lambda x: F.interpolate(x.view(1, 1, 3, 6), scale_factor=2, mode="bicubic").flatten(1),
    "interp_nearest_exact": lambda x: F.interpolate(x[:, None], scale_factor=2, mode="nearest-exact").flatten(1),
    "interp_area": lambda x: F.interpolate(x[:, None], size=3, mode="area").flatten(1),
    "rfft": lambda x: torch.fft.irfft(torch.fft.rfft(x) * (1 + 2j)),
    "fft2": lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real,
    "stft": lambda x: (
        torch.stft(x.flatten()[None], 6, return_complex=True, window=torch.hann_window(6).double(), center=False)
        .abs()
        .flatten(1)
    ),
    "complex_abs_angle": lambda x: (
        torch.view_as_complex(x.view(3, 3, 2)).abs() + torch.view_as_complex(x.view(3, 3, 2)).angle()
    ),
    "polar": lambda x: torch.polar(x.abs(), x).real,
    "sort": lambda x: x.sort(-1)[0] * W[0],
    "topk_gather": lambda x: x.gather(1, x.topk(2)[1]),
    "cumsum": lambda x: x.cumsum(-1),
    "cumprod": lambda x: x.cumprod(-1),
    "cummax": lambda x: x.cummax(-1)[0],
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "kthvalue": lambda x: x.kthvalue(2)[0],
    "median": lambda x: x.median(-1)[0],
    "quantile": lambda x: x.quantile(0.3, dim=-1),
    "mode": lambda x: x.mode(-1)[0],
    "aminmax": lambda x: x.aminmax(dim=-1)[1],
    "tensordot": lambda x: torch.tensordot(x, W, 1),
    "kron": lambda x: torch.kron(x, W[:1]),
    "cross": lambda x: torch.linalg.cross(x[:, :3], x[:, 3:]),
    "det": lambda x: torch.linalg.det(x.view(2, 3, 3)),
    "slogdet": lambda x: torch.linalg.slogdet(x.view(2, 3, 3))[1],
    "inverse": lambda x: torch.linalg.inv(x.view(2, 3, 3)).flatten(1),
    "solve": lambda x: torch.linalg.solve(W[:3, :3], x),
    "solve_signal": lambda x: torch.linalg.solve(x[:, :3] + 2 * torch.eye(3).double(), x[:, 3:]),
    "cholesky": lambda x: torch.linalg.cholesky(x @ x.T + torch.eye(3).double()),
    "svdvals": lambda x: torch.linalg.svdvals(x.view(3, 2, 3)),
    "svd": lambda x: torch.linalg.svd(x, full_matrices=False)[1],
    "eigh": lambda x: torch.linalg.eigh(x @ x.T)[0],
    "qr": lambda x: torch.linalg.qr(x.T)[1],
    "matrix_exp": lambda x: torch.matrix_exp(x[:, :3]),
    "pinv": lambda x: torch.linalg.pinv(x),
    "solve_triangular": lambda x: torch.linalg.solve_triangular(W[:3, :3].tril(), x, upper=False),
    "matrix_power": lambda x: torch.linalg.matrix_power(x[:, :3], 3),
    "norm2": lambda x: x.norm(dim=-1),
    "norm1": lambda x: x.norm(p=1, dim=-1),
    "norminf": lambda x: torch.linalg.vector_norm(x, float("inf"), dim=-1),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x.view(3, 2, 3)),
    "var": lambda x: x.var(-1),
    "std": lambda x: x.std(-1),
    "var_mean": lambda x: sum(torch.var_mean(x, -1)),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "prod": lambda x: x.prod(-1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2]).double()),
    "rrelu": lambda x: F.rrelu(x),
    "glu": lambda x: F.glu(x),
    "softplus": F.softplus,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "celu": F.celu,
    "selu": F.selu,
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "softmin": lambda x: F.softmin(x, -1),
    "gumbel": lambda x: F.gumbel_softmax(x, dim=-1),
    "lrn": lambda x: F.local_response_norm(x[:, :, None], 3).flatten(1),
    "embedding_bag": lambda x: F.embedding_bag(torch.tensor([[0, 1], [1, 2], [0, 2]]), x),
    "max_unpool": lambda x: F.max_unpool1d(*F.max_pool1d(x[:, None], 2, return_indices=True), 2).flatten(1),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool1d(x[:, None], 2).flatten(1),
    "lp_pool": lambda x: F.lp_pool1d(x[:, None], 2, 2).flatten(1),
    "avg_pool3d": lambda x: F.avg_pool3d(x.view(1, 1, 1, 3, 6), (1, 1, 2)).flatten(1),
    "instance_norm": lambda x: F.instance_norm(x[:, None]).flatten(1),
    "group_norm": lambda x: F.group_norm(x[:, :, None], 2).flatten(1),
    "rms_norm": lambda x: F.rms_norm(x, (6,)),
    "conv_transpose": lambda x: F.conv_transpose1d(x[:, None], W[:1, None, :2], stride=2).flatten(1),
    "pad_reflect": lambda x: F.pad(x[:, None], (2, 2), mode="reflect").flatten(1),
    "pad_replicate": lambda x: F.pad(x[:, None], (2, 2), mode="replicate").flatten(1),
    "pad_circular": lambda x: F.pad(x[:, None], (2, 2), mode="circular").flatten(1),
    "ctc": lambda x: (
        -F.ctc_loss(
            x.log_softmax(-1)[:, None], torch.tensor([[1, 2]]), torch.tensor([3]), torch.tensor([2]), reduction="none"
        )
    ),
    "scatter_mean": lambda x: (
        torch.zeros(2, 6)
        .double()
        .scatter_reduce(0, torch.tensor([0, 1, 0])[:, None].expand(3, 6), x, "mean", include_self=False)
    ),
    "scatter_prod": lambda x: (
        torch.ones(2, 6).double().scatter_reduce(0, torch.tensor([0, 1, 0])[:, None].expand(3, 6), x, "prod")
    ),
    "scatter_amax": lambda x: (
        torch.zeros(2, 6)
        .double()
        .scatter_reduce(0, torch.tensor([0, 1, 0])[:, None].expand(3, 6), x, "amax", include_self=False)
    ),
    "index_reduce": lambda x: (
        torch.zeros(2, 6).double().index_reduce(0, torch.tensor([0, 1, 0]), x, "mean", include_self=False)
    ),
    "segment_reduce": lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([2, 1])),
    "index_copy": lambda x: torch.zeros(3, 6).double().index_copy(0, torch.tensor([2, 0, 1]), x),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([1]), 0.0),
    "masked_scatter": lambda x: torch.zeros(3, 6).double().masked_scatter(W[:3] > 0, x),
    "masked_select": lambda x: x.masked_select(W[:3] > 0)[None],
    "take_along": lambda x: x.take_along_dim(x.argsort(-1), -1),
    "put": lambda x: torch.zeros(18).double().put(torch.arange(18), x).view(3, 6),
    "sparse_mm": lambda x: torch.sparse.mm(torch.eye(3).double().to_sparse(), x),
    "sparse_csr": lambda x: torch.eye(3).double().to_sparse_csr() @ x,
    "nonzero_index": lambda x: x[x > 0].sum()[None],
    "lerp": lambda x: torch.lerp(x, x @ W, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x @ W),
    "addcdiv": lambda x: torch.addcdiv(x, x @ W, 1 + x * x),
    "baddbmm": lambda x: torch.baddbmm(x[None], x[None], W[None]),
    "addmv": lambda x: torch.addmv(x[:, 0], x, W[0]),
    "ger": lambda x: torch.outer(x[:, 0], x[0]),
    "dot": lambda x: torch.dot(x[0], x[1])[None],
    "atan2": lambda x: torch.atan2(x, x @ W),
    "hypot": lambda x: torch.hypot(x, x @ W),
    "erf": torch.erf,
    "erfinv": lambda x: torch.erfinv(x * 0.1),
    "lgamma": lambda x: torch.lgamma(x.abs() + 1),
    "digamma": lambda x: torch.digamma(x.abs() + 1),
    "sinc": torch.sinc,
    "i0": torch.i0,
    "logit": lambda x: torch.logit(x.sigmoid()),
    "xlogy": lambda x: torch.xlogy(x.exp(), x.exp()),
    "entr": lambda x: torch.special.entr(x.exp()),
    "log1p_expm1": lambda x: torch.log1p(x.abs()) + torch.expm1(x),
    "pow_tensor": lambda x: x.abs() ** (x @ W),
    "pow_scalar_base": lambda x: 2**x,
    "fmod": lambda x: torch.fmod(x, 0.5),
    "remainder": lambda x: torch.remainder(x, 0.5),
    "round": torch.round,
    "frac": torch.frac,
    "sign": lambda x: x.sign() * x,
    "clamp_tensor": lambda x: torch.clamp(x, min=-W[:3].abs(), max=W[:3].abs()),
    "heaviside": lambda x: torch.heaviside(x, x) * x,
    "nan_to_num": torch.nan_to_num,
    "copysign": lambda x: torch.copysign(x, x @ W),
    "fmax": lambda x: torch.fmax(x, x @ W),
    "logaddexp": lambda x: torch.logaddexp(x, x @ W),
    "rsub": lambda x: torch.rsub(x, 1.0),
    "float_power": lambda x: torch.float_power(x.abs(), 1.5),
    "square_rsqrt": lambda x: x.square().add(1).rsqrt(),
    "acos_asin_atan": lambda x: torch.asin(x * 0.1) + torch.acos(x * 0.1) + torch.atan(x),
    "sinh_cosh": lambda x: x.sinh() + x.cosh(),
    "reciprocal": lambda x: (1 + x * x).reciprocal(),
    "roll_rot_flip": lambda x: torch.rot90(x.roll(1, -1)).flip(0).T,
    "diag_embed": lambda x: torch.diag_embed(x).flatten(1),
    "diagonal_trace": lambda x: x[:, :3].diagonal()[None] + x[:, :3].trace(),
    "block_diag": lambda x: torch.block_diag(x, x),
    "diff": lambda x: torch.diff(x),
    "trapz": lambda x: torch.trapezoid(x),
    "cov": lambda x: torch.cov(x),
    "corrcoef": lambda x: torch.corrcoef(x),
    "unfold_dim": lambda x: x.unfold(1, 2, 1).flatten(1),
    "as_strided": lambda x: x.as_strided((2, 6), (6, 1)),
    "combinations": lambda x: torch.combinations(x[0], 2),
    "cartesian_prod": lambda x: torch.cartesian_prod(x[0], x[1]),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tril": lambda x: x.tril(),
    "unbind_stack": lambda x: torch.stack(x.unbind(0)[::-1]),
    "vander": lambda x: torch.vander(x[0], 3),
    "bucketize_emb": lambda x: W[torch.bucketize(x[:, 0], torch.linspace(-2, 2, 5).double())] * x,
    "searchsorted": lambda x: x * torch.searchsorted(W[0].sort()[0], x),
    "histc": lambda x: torch.histc(x, 5)[None] * x.sum(),
    "linear_custom_autograd": lambda x: Cube.apply(x),
    "checkpoint": lambda x: checkpoint(lambda y: (y @ W).relu(), x, use_reentrant=False),
    "vmap": lambda x: torch.vmap(lambda r: r @ W)(x),
    "vmap_jac": lambda x: torch.vmap(torch.func.jacrev(lambda r: (r @ W).tanh()))(x).flatten(1),
    "autograd_grad": derivative_inside,
    "no_grad_block": constant_scale,
    "detach": lambda x: x * (x @ W).detach() + x.detach(),
}

#: further ones, of the operators that have a derivative
FURTHER = {
    "addr": lambda x: torch.addr(x[:, :3], x[:, 0], x[1, 3:]),
    "bce": lambda x: -F.binary_cross_entropy(x.sigmoid(), torch.ones_like(x), reduction="none").sum(-1),
    "channel_shuffle": lambda x: F.channel_shuffle(x.view(1, 6, 3, 1), 2).flatten(1),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(x[:, :3].tril() + 3 * torch.eye(3).double()),
    "conv_tbc": lambda x: torch.conv_tbc(x.view(3, 1, 6), W.view(1, 6, 6), W[0], 0).flatten(1),
    "cosine_embedding": lambda x: F.cosine_embedding_loss(x, x @ W, torch.tensor([1, -1, 1]), reduction="none"),
    "cumulative_trapezoid": lambda x: torch.cumulative_trapezoid(x),
    "diagonal_scatter": lambda x: (x @ W).diagonal_scatter(x[:, 0]),
    "dist": lambda x: torch.dist(x, x @ W)[None],
    "erfcx": lambda x: torch.special.erfcx(x),
    "fmin": lambda x: torch.fmin(x, x @ W),
    "gaussian_nll": lambda x: F.gaussian_nll_loss(x, W[:3], (x @ W).exp(), reduction="none").sum(-1),
    "hinge_embedding": lambda x: F.hinge_embedding_loss(x, torch.ones_like(x).sign(), reduction="none").sum(-1),
    "igamma": lambda x: torch.igamma(torch.ones_like(x) * 2, x.exp()),
    "index_reduce_prod": lambda x: torch.ones(2, 6).double().index_reduce(0, torch.tensor([0, 1, 0]), x, "prod"),
    "istft": lambda x: torch.istft(torch.stft(x.flatten()[None], 6, return_complex=True), 6),
    "ldexp": lambda x: torch.ldexp(x, torch.arange(6)),
    "linalg_norm": lambda x: torch.linalg.norm(x.view(3, 2, 3), dim=(1, 2), ord=2),
    "logaddexp2": lambda x: torch.logaddexp2(x, x @ W),
    "logdet": lambda x: torch.logdet(x[:, :3] @ x[:, :3].T + torch.eye(3).double())[None],
    "margin_ranking": lambda x: F.margin_ranking_loss(x, x @ W, torch.ones_like(x), reduction="none").sum(-1),
    "max_unpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x.view(1, 1, 3, 6), (1, 2), return_indices=True), (1, 2)),
    "multi_dot": lambda x: torch.linalg.multi_dot([x, W, W]),
    "multi_margin": lambda x: -F.multi_margin_loss(x, torch.tensor([1, 2, 0]), reduction="none"),
    "nanmean": lambda x: x.nanmean(-1),
    "nanmedian": lambda x: x.nanmedian(-1)[0],
    "nansum": lambda x: x.nansum(-1),
    "poisson_nll": lambda x: -F.poisson_nll_loss(x, W[:3].abs(), reduction="none").sum(-1),
    "polygamma": lambda x: torch.polygamma(1, x.exp()),
    "prod_zero": lambda x: (x * (torch.arange(6) != 2)).prod(-1),
    "cumprod_zero": lambda x: (x * (torch.arange(6) != 2)).cumprod(-1),
    "prod_all": lambda x: x.prod()[None],
    "rad2deg": lambda x: torch.rad2deg(x),
    "segment_reduce_max": lambda x: torch.segment_reduce(x, "max", lengths=torch.tensor([2, 1])),
    "soft_margin": lambda x: -F.soft_margin_loss(x, torch.ones_like(x), reduction="none").sum(-1),
    "std_mean": lambda x: sum(torch.std_mean(x, -1)),
    "svd_rank": lambda x: torch.linalg.matrix_norm(x.view(3, 2, 3), ord="nuc"),
    "take": lambda x: x.take(torch.tensor([[0, 7], [3, 17]])),
    "tensorinv": lambda x: torch.linalg.tensorinv(x.view(2, 3, 3)[0][None] + torch.eye(3).double(), ind=2).flatten(1),
    "upsample_nearest3d": lambda x: F.interpolate(x.view(1, 1, 1, 3, 6), scale_factor=2).flatten(1),
    "vecdot": lambda x: torch.linalg.vecdot(x, x @ W),
    "xlog1py": lambda x: torch.special.xlog1py(x, x.exp()),
    "xlogy_zero": lambda x: torch.xlogy(x.relu(), x.relu()),
}

#: functionals that do not work -> reason
OUT_OF_REACH = {
    "sparse_csr": "no route captures tensors in compressed sparse layouts; other layouts work",
}

#: functionals that do not work yet -> reason
NOT_YET = {
    "vmap": "what is computed inside `vmap` has no derivative in a recorded run: refused",
    "vmap_jac": "a Jacobian inside a model: refused",
    "autograd_grad": "a gradient that the model itself computes: refused",
}

#: new numbers are drawn at every call, so that the model itself is no reference
RANDOM = ("gumbel",)
