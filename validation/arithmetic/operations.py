"""What torch's operations do to rounding: which of them give the same bits on any machine.

An operation's result depends on the machine only through what its kernel does inside: the order of
a sum, fused multiply-adds, approximations of exp or a square root. Three kinds follow:

- `PASSES`: only moves, selects or compares numbers, or is a view. The same bits everywhere.
- `EXACT`: one operation of IEEE 754 (add, sub, mul, div), rounded once. The same bits everywhere,
  except with a factor (`alpha`), where kernels may fuse the product into the sum, and for complex
  numbers, whose product is several operations.
- `ROUNDS`: everything else: sums, products of matrices, functions, random draws.

Views are known by their schema, functions of single numbers by torch's tag `pointwise`, most
reductions by `reduction`; what torch does not tag is in the tables below. In-place, `out=` and
foreach forms are their plain operation's. An operation in no table is `UNKNOWN`, so that none of a
later torch can slip through.
"""

from __future__ import annotations

import functools
from enum import Enum
from typing import Any

import torch


class Kind(Enum):
    """What an operation does to rounding; see the module."""

    PASSES = "moves numbers"
    EXACT = "one IEEE operation"
    ROUNDS = "rounds inside"
    UNKNOWN = "in no table"


class UnknownOperationError(RuntimeError):
    """An operation on rounded numbers that is not classified by what it does to their rounding."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


EXACT = _words("add sub rsub mul div")

# Moves, selects, compares, rounds to whole numbers; factories of given values; queries.
_PASSES = _words(
    """
    abs alias all allclose aminmax _aminmax any amax amin argmax argmin argsort as_strided
    as_strided_scatter bernoulli bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor block_diag bucketize cat _chunk_cat ceil channel_shuffle clamp
    clamp_max clamp_min clone complex conj_physical _conj_physical constant_pad_nd copy copysign
    count_nonzero cummax cummin _cummax_helper _cummin_helper detach diag_embed diagonal_backward
    diagonal_scatter
    embedding empty empty_like empty_permuted empty_strided eq equal expand eye fill flip floor
    fmax fmin frac frexp full full_like _fused_sdp_choice is_coalesced sparse_dim
    dense_dim _nnz _dimI _dimV gather ge gt
    _has_same_storage_numel hardtanh hardtanh_backward hash_tensor heaviside im2col index
    index_copy index_fill index_select is_pinned is_same_size is_set_to isfinite isin isinf isnan
    isneginf isposinf kthvalue le lift lift_fresh _local_scalar_dense logical_and logical_not
    logical_or logical_xor lt lu_unpack masked_fill masked_scatter masked_scatter_backward
    masked_select max max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d
    maximum median min minimum mode nan_to_num nanmedian narrow_copy ne neg new_empty
    new_empty_strided new_full new_ones new_zeros nextafter nonzero nonzero_static ones ones_like
    _pin_memory pin_memory pixel_shuffle pixel_unshuffle positive randint randint_like random
    randperm record_stream reflection_pad1d reflection_pad2d reflection_pad3d relu relu_ repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize resize_as
    _reshape_alias roll rot90 round scalar_tensor scatter searchsorted select_backward
    select_scatter set sgn sign signbit slice_backward slice_scatter sort split_with_sizes squeeze
    stack _stack t take threshold threshold_backward _to_copy topk transpose tril tril_indices triu
    triu_indices trunc _unique _unique2 unique_consecutive unique_dim unique_dim_consecutive
    _unsafe_index _unsafe_masked_index _unsafe_view unsafe_split unsafe_split_with_sizes unsqueeze
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d where zero zeros zeros_like
    _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async
    _functional_assert_scalar _efficientzerotensor sym_size sym_stride sym_numel
    """
)

# Sums and products, norms, losses and their gradients, drawn numbers, decompositions: rounded
# inside, and not tagged as such by torch.
_ROUNDS = _words(
    """
    mm bmm addmm addmv addbmm baddbmm addr dot vdot mv linear _addmm_activation _grouped_mm
    _trilinear
    _euclidean_dist _cdist_forward _cdist_backward _pdist_forward _pdist_backward dist trace
    convolution _convolution convolution_backward conv_tbc conv_depthwise3d _conv_depthwise2d
    slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d
    slow_conv_transpose3d _slow_conv2d_forward _slow_conv2d_backward col2im unfold_backward
    softmax log_softmax _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data
    _safe_softmax _masked_softmax _masked_softmax_backward logcumsumexp _logcumsumexp cumsum cumprod
    native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
    native_batch_norm native_batch_norm_backward _native_batch_norm_legit
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _batch_norm_no_update
    _batch_norm_with_update _batch_norm_with_update_functional batch_norm_backward _fused_rms_norm
    _fused_rms_norm_backward renorm embedding_renorm _weight_norm_interface
    _weight_norm_interface_backward
    nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward mse_loss
    mse_loss_backward smooth_l1_loss smooth_l1_loss_backward huber_loss huber_loss_backward
    binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits
    soft_margin_loss soft_margin_loss_backward multi_margin_loss multi_margin_loss_backward
    multilabel_margin_loss_forward multilabel_margin_loss_backward _ctc_loss _ctc_loss_backward
    embedding_dense_backward _embedding_bag _embedding_bag_forward_only _embedding_bag_backward
    _embedding_bag_dense_backward _embedding_bag_per_sample_weights_backward index_add index_put
    _index_put_impl _unsafe_index_put _unsafe_masked_index_put_accumulate index_reduce scatter_add
    scatter_reduce segment_reduce _segment_reduce_backward put
    _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_flash_attention_for_cpu_backward
    celu elu elu_backward gelu glu glu_backward glu_jvp glu_backward_jvp hardshrink_backward
    hardsigmoid hardsigmoid_backward hardswish hardswish_backward leaky_relu leaky_relu_backward
    log_sigmoid_forward log_sigmoid_backward mish softplus_backward softshrink_backward
    rrelu_with_noise rrelu_with_noise_backward rrelu_with_noise_functional _prelu_kernel
    _prelu_kernel_backward floor_divide _add_relu
    avg_pool1d avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool2d_backward
    _adaptive_avg_pool3d _adaptive_avg_pool3d_backward adaptive_max_pool2d
    adaptive_max_pool2d_backward adaptive_max_pool3d adaptive_max_pool3d_backward
    adaptive_avg_pool3d_backward fractional_max_pool2d
    fractional_max_pool2d_backward fractional_max_pool3d fractional_max_pool3d_backward
    max_pool2d_with_indices_backward max_pool3d_with_indices_backward reflection_pad1d_backward
    reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward
    replication_pad2d_backward replication_pad3d_backward
    upsample_linear1d upsample_linear1d_backward upsample_bilinear2d upsample_bilinear2d_backward
    upsample_trilinear3d upsample_trilinear3d_backward upsample_bicubic2d
    upsample_bicubic2d_backward _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward
    _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward upsample_nearest1d_backward
    upsample_nearest2d_backward upsample_nearest3d_backward _upsample_nearest_exact1d_backward
    _upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward
    grid_sampler_2d grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward
    affine_grid_generator
    cholesky cholesky_inverse cholesky_solve _cholesky_solve_helper geqrf linalg_cholesky_ex
    linalg_cross linalg_eig _linalg_eigvals linalg_eigvals _linalg_eigh linalg_householder_product
    linalg_inv_ex linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor_ex
    linalg_lu_solve linalg_matrix_exp linalg_pinv linalg_qr linalg_solve_triangular _linalg_det
    _linalg_slogdet _linalg_solve_ex _linalg_svd ormqr triangular_solve _compute_linear_combination
    _fft_c2c _fft_c2r _fft_r2c fft_fftfreq fft_rfftfreq polar histc histogram _histogramdd_bin_edges
    _histogramdd_from_bin_cts _histogramdd_from_bin_tensors bincount
    normal normal_functional uniform exponential log_normal cauchy geometric rand rand_like randn
    randn_like multinomial poisson binomial _standard_gamma _standard_gamma_grad _sample_dirichlet
    _dirichlet_grad native_dropout arange range linspace logspace bartlett_window blackman_window
    hamming_window hann_window kaiser_window
    _fused_adagrad _fused_adam _fused_adamw _fused_sgd _foreach_norm _foreach_powsum
    _amp_foreach_non_finite_check_and_unscale _amp_update_scale
    """
)

# Results of other processes, added element by element in an order that the processes decide.
_COMMUNICATION = ("c10d", "_c10d_functional", "_c10d_functional_autograd")
_NO_NUMBERS = ("profiler", "prim", "debugprims", "streams")


@functools.cache
def plain_name(operation: Any) -> str:
    """The plain operation that an overload is a form of: `add` of `_foreach_add_.List`."""
    name: str = operation._schema.name.split("::")[1]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name


def element_name(operation: Any) -> str:
    """The plain operation on each tensor of a foreach form; `plain_name` of any other."""
    return plain_name(operation).removeprefix("_foreach_")


@functools.cache
def kind_of(operation: Any) -> Kind:
    """What an overload (`torch._ops.OpOverload`) does to rounding."""
    schema = operation._schema
    namespace = schema.name.split("::")[0]
    if namespace in _COMMUNICATION or namespace in _NO_NUMBERS:
        return Kind.PASSES
    if namespace != "aten":
        return Kind.UNKNOWN
    name, element = plain_name(operation), element_name(operation)
    if "reduce" in operation._overloadname and element == "scatter":
        return Kind.ROUNDS
    if element == "round" and "decimals" in operation._overloadname:
        return Kind.ROUNDS
    if element == "div" and "mode" in operation._overloadname:
        return Kind.ROUNDS
    if element in EXACT:
        return Kind.EXACT
    if element in _PASSES or _is_view(operation) or torch.Tag.view_copy in operation.tags:
        return Kind.PASSES
    if name in _ROUNDS or element in _ROUNDS or _tagged(element):
        return Kind.ROUNDS
    return Kind.UNKNOWN


def _is_view(operation: Any) -> bool:
    """Whether it returns, or turns an argument into, a view of what is there already."""
    if torch.Tag.inplace_view in operation.tags:
        return True
    returns = operation._schema.returns
    aliases = [r.alias_info for r in returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


@functools.cache
def _tagged(name: str) -> bool:
    """Whether torch tags any form of an operation as a function of numbers, or as a reduction."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags}
    return torch.Tag.pointwise in tags or torch.Tag.reduction in tags
