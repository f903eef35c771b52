//! The operations on tensors: as [`Autodiff`] has them, but for `float_topk`, which it lacks and the trait composes.
//!
//! Each table has the methods that a backend must have and those that `Autodiff` has in a way of its own. What both take
//! from the trait is not here.

use std::future::Future;
use std::ops::Range;

use burn::tensor::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps, QTensorOps};
use burn::tensor::ops::{TransactionOps, TransactionPrimitive, TransactionPrimitiveData};

use super::*;

/// What a tensor's values are read as.
type Read = Result<TensorData, ExecutionError>;

impl<B: Backend> FloatTensorOps<Self> for Tape<B> {
    forward! { Autodiff<B> =>
        fn float_from_data(data: TensorData, device: &Device<B>) -> Float<B>;
        fn float_random(shape: Shape, distribution: Distribution, device: &Device<B>, dtype: FloatDType) -> Float<B>;
        fn float_zeros(shape: Shape, device: &Device<B>, dtype: FloatDType) -> Float<B>;
        fn float_ones(shape: Shape, device: &Device<B>, dtype: FloatDType) -> Float<B>;
        fn float_into_data(tensor: Float<B>) -> impl Future<Output = Read> + Send;
        fn float_device(tensor: &Float<B>) -> Device<B>;
        fn float_to_device(tensor: Float<B>, device: &Device<B>) -> Float<B>;
        fn float_into_int(tensor: Float<B>, out_dtype: IntDType) -> Int<B>;
        fn float_empty(shape: Shape, device: &Device<B>, dtype: FloatDType) -> Float<B>;
        fn float_repeat_dim(tensor: Float<B>, dim: usize, times: usize) -> Float<B>;
        fn float_add(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn float_add_scalar(lhs: Float<B>, rhs: Scalar) -> Float<B>;
        fn float_sub(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn float_sub_scalar(lhs: Float<B>, rhs: Scalar) -> Float<B>;
        fn float_mul(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn float_mul_scalar(lhs: Float<B>, rhs: Scalar) -> Float<B>;
        fn float_div(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn float_div_scalar(lhs: Float<B>, rhs: Scalar) -> Float<B>;
        fn float_remainder(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn float_remainder_scalar(lhs: Float<B>, rhs: Scalar) -> Float<B>;
        fn float_matmul(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn float_cross(lhs: Float<B>, rhs: Float<B>, dim: usize) -> Float<B>;
        fn float_neg(tensor: Float<B>) -> Float<B>;
        fn float_recip(tensor: Float<B>) -> Float<B>;
        fn float_swap_dims(tensor: Float<B>, dim1: usize, dim2: usize) -> Float<B>;
        fn float_permute(tensor: Float<B>, axes: &[usize]) -> Float<B>;
        fn float_flip(tensor: Float<B>, axes: &[usize]) -> Float<B>;
        fn float_reshape(tensor: Float<B>, shape: Shape) -> Float<B>;
        fn float_gather(dim: usize, tensor: Float<B>, indices: Int<B>) -> Float<B>;
        fn float_scatter_add(dim: usize, tensor: Float<B>, indices: Int<B>, value: Float<B>) -> Float<B>;
        fn float_scatter_nd(data: Float<B>, indices: Int<B>, values: Float<B>, reduction: IndexingUpdateOp) -> Float<B>;
        fn float_gather_nd(data: Float<B>, indices: Int<B>) -> Float<B>;
        fn float_select(tensor: Float<B>, dim: usize, indices: Int<B>) -> Float<B>;
        fn float_select_add(tensor: Float<B>, dim: usize, indices: Int<B>, value: Float<B>) -> Float<B>;
        fn float_slice(tensor: Float<B>, slices: &[Slice]) -> Float<B>;
        fn float_slice_assign(tensor: Float<B>, slices: &[Slice], value: Float<B>) -> Float<B>;
        fn float_mask_where(tensor: Float<B>, mask: Bool<B>, value: Float<B>) -> Float<B>;
        fn float_mask_fill(tensor: Float<B>, mask: Bool<B>, value: Scalar) -> Float<B>;
        fn float_equal(lhs: Float<B>, rhs: Float<B>, out_dtype: BoolDType) -> Bool<B>;
        fn float_equal_elem(lhs: Float<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn float_greater(lhs: Float<B>, rhs: Float<B>, out_dtype: BoolDType) -> Bool<B>;
        fn float_greater_elem(lhs: Float<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn float_greater_equal(lhs: Float<B>, rhs: Float<B>, out_dtype: BoolDType) -> Bool<B>;
        fn float_greater_equal_elem(lhs: Float<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn float_lower(lhs: Float<B>, rhs: Float<B>, out_dtype: BoolDType) -> Bool<B>;
        fn float_lower_elem(lhs: Float<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn float_lower_equal(lhs: Float<B>, rhs: Float<B>, out_dtype: BoolDType) -> Bool<B>;
        fn float_lower_equal_elem(lhs: Float<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn float_detach(tensor: Float<B>) -> Float<B>;
        fn float_set_require_grad(tensor: Float<B>, require_grad: bool) -> Float<B>;
        fn float_is_require_grad(tensor: &Float<B>) -> bool;
        fn float_sum(tensor: Float<B>) -> Float<B>;
        fn float_sum_dim(tensor: Float<B>, dim: usize) -> Float<B>;
        fn float_mean(tensor: Float<B>) -> Float<B>;
        fn float_mean_dim(tensor: Float<B>, dim: usize) -> Float<B>;
        fn float_cumsum(tensor: Float<B>, dim: usize) -> Float<B>;
        fn float_cumprod(tensor: Float<B>, dim: usize) -> Float<B>;
        fn float_cummin(tensor: Float<B>, dim: usize) -> Float<B>;
        fn float_cummax(tensor: Float<B>, dim: usize) -> Float<B>;
        fn float_cast(tensor: Float<B>, dtype: FloatDType) -> Float<B>;
        fn float_exp(tensor: Float<B>) -> Float<B>;
        fn float_log(tensor: Float<B>) -> Float<B>;
        fn float_log1p(tensor: Float<B>) -> Float<B>;
        fn float_powf(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn float_powf_scalar_impl(tensor: Float<B>, value: Scalar) -> Float<B>;
        fn float_sqrt(tensor: Float<B>) -> Float<B>;
        fn float_abs(tensor: Float<B>) -> Float<B>;
        fn float_cos(tensor: Float<B>) -> Float<B>;
        fn float_sin(tensor: Float<B>) -> Float<B>;
        fn float_tan(tensor: Float<B>) -> Float<B>;
        fn float_cosh(tensor: Float<B>) -> Float<B>;
        fn float_sinh(tensor: Float<B>) -> Float<B>;
        fn float_tanh(tensor: Float<B>) -> Float<B>;
        fn float_acos(tensor: Float<B>) -> Float<B>;
        fn float_acosh(tensor: Float<B>) -> Float<B>;
        fn float_asin(tensor: Float<B>) -> Float<B>;
        fn float_asinh(tensor: Float<B>) -> Float<B>;
        fn float_atan(tensor: Float<B>) -> Float<B>;
        fn float_atanh(tensor: Float<B>) -> Float<B>;
        fn float_atan2(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn float_round(tensor: Float<B>) -> Float<B>;
        fn float_floor(tensor: Float<B>) -> Float<B>;
        fn float_ceil(tensor: Float<B>) -> Float<B>;
        fn float_trunc(tensor: Float<B>) -> Float<B>;
        fn float_erf(tensor: Float<B>) -> Float<B>;
        fn float_cat(tensors: Vec<Float<B>>, dim: usize) -> Float<B>;
        fn float_argmax(tensor: Float<B>, dim: usize, out_dtype: IntDType) -> Int<B>;
        fn float_argtopk(tensor: Float<B>, dim: usize, k: usize, out_dtype: IntDType) -> Int<B>;
        fn float_argmin(tensor: Float<B>, dim: usize, out_dtype: IntDType) -> Int<B>;
        fn float_max_dim(tensor: Float<B>, dim: usize) -> Float<B>;
        fn float_max_dim_with_indices(tensor: Float<B>, dim: usize, indices_dtype: IntDType) -> (Float<B>, Int<B>);
        fn float_min_dim(tensor: Float<B>, dim: usize) -> Float<B>;
        fn float_min_dim_with_indices(tensor: Float<B>, dim: usize, indices_dtype: IntDType) -> (Float<B>, Int<B>);
        fn float_sign(tensor: Float<B>) -> Float<B>;
        fn float_expand(tensor: Float<B>, shape: Shape) -> Float<B>;
        fn float_sort(tensor: Float<B>, dim: usize, descending: bool) -> Float<B>;
        fn float_sort_with_indices(tensor: Float<B>, dim: usize, descending: bool, indices_dtype: IntDType) -> (Float<B>, Int<B>);
        fn float_argsort(tensor: Float<B>, dim: usize, descending: bool, out_dtype: IntDType) -> Int<B>;
        fn float_unfold(tensor: Float<B>, dim: usize, size: usize, step: usize) -> Float<B>;
        fn float_is_nan(tensor: Float<B>, out_dtype: BoolDType) -> Bool<B>;
        fn float_is_inf(tensor: Float<B>, out_dtype: BoolDType) -> Bool<B>;
    }
}

impl<B: Backend> IntTensorOps<Self> for Tape<B> {
    forward! { Autodiff<B> =>
        fn int_empty(shape: Shape, device: &Device<B>, dtype: IntDType) -> Int<B>;
        fn int_into_data(tensor: Int<B>) -> impl Future<Output = Read> + Send;
        fn int_from_data(data: TensorData, device: &Device<B>) -> Int<B>;
        fn int_device(tensor: &Int<B>) -> Device<B>;
        fn int_to_device(tensor: Int<B>, device: &Device<B>) -> Int<B>;
        fn int_reshape(tensor: Int<B>, shape: Shape) -> Int<B>;
        fn int_slice(tensor: Int<B>, slices: &[Slice]) -> Int<B>;
        fn int_slice_assign(tensor: Int<B>, slices: &[Slice], value: Int<B>) -> Int<B>;
        fn int_into_float(tensor: Int<B>, out_dtype: FloatDType) -> Float<B>;
        fn int_mask_where(tensor: Int<B>, mask: Bool<B>, value: Int<B>) -> Int<B>;
        fn int_mask_fill(tensor: Int<B>, mask: Bool<B>, value: Scalar) -> Int<B>;
        fn int_gather(dim: usize, tensor: Int<B>, indices: Int<B>) -> Int<B>;
        fn int_scatter_add(dim: usize, tensor: Int<B>, indices: Int<B>, value: Int<B>) -> Int<B>;
        fn int_select(tensor: Int<B>, dim: usize, indices: Int<B>) -> Int<B>;
        fn int_select_add(tensor: Int<B>, dim: usize, indices: Int<B>, value: Int<B>) -> Int<B>;
        fn int_repeat_dim(tensor: Int<B>, dim: usize, times: usize) -> Int<B>;
        fn int_cat(tensors: Vec<Int<B>>, dim: usize) -> Int<B>;
        fn int_equal(lhs: Int<B>, rhs: Int<B>, out_dtype: BoolDType) -> Bool<B>;
        fn int_equal_elem(lhs: Int<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn int_greater(lhs: Int<B>, rhs: Int<B>, out_dtype: BoolDType) -> Bool<B>;
        fn int_greater_elem(lhs: Int<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn int_greater_equal(lhs: Int<B>, rhs: Int<B>, out_dtype: BoolDType) -> Bool<B>;
        fn int_greater_equal_elem(lhs: Int<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn int_lower(lhs: Int<B>, rhs: Int<B>, out_dtype: BoolDType) -> Bool<B>;
        fn int_lower_elem(lhs: Int<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn int_lower_equal(lhs: Int<B>, rhs: Int<B>, out_dtype: BoolDType) -> Bool<B>;
        fn int_lower_equal_elem(lhs: Int<B>, rhs: Scalar, out_dtype: BoolDType) -> Bool<B>;
        fn int_add(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn int_add_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn int_clamp_min(tensor: Int<B>, min: Scalar) -> Int<B>;
        fn int_clamp_max(tensor: Int<B>, max: Scalar) -> Int<B>;
        fn int_clamp(tensor: Int<B>, min: Scalar, max: Scalar) -> Int<B>;
        fn int_sub(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn int_sub_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn int_mul(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn int_mul_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn int_div(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn int_div_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn int_remainder(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn int_remainder_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn int_matmul(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn int_neg(tensor: Int<B>) -> Int<B>;
        fn int_zeros(shape: Shape, device: &Device<B>, dtype: IntDType) -> Int<B>;
        fn int_ones(shape: Shape, device: &Device<B>, dtype: IntDType) -> Int<B>;
        fn int_full(shape: Shape, fill_value: Scalar, device: &Device<B>, dtype: IntDType) -> Int<B>;
        fn int_sum(tensor: Int<B>) -> Int<B>;
        fn int_sum_dim(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_prod(tensor: Int<B>) -> Int<B>;
        fn int_prod_dim(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_mean(tensor: Int<B>) -> Int<B>;
        fn int_mean_dim(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_cumsum(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_cumprod(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_cummin(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_cummax(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_argmax(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_argtopk(tensor: Int<B>, dim: usize, k: usize) -> Int<B>;
        fn int_topk(tensor: Int<B>, dim: usize, k: usize) -> Int<B>;
        fn int_argmin(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_max(tensor: Int<B>) -> Int<B>;
        fn int_max_dim(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_max_dim_with_indices(tensor: Int<B>, dim: usize) -> (Int<B>, Int<B>);
        fn int_min(tensor: Int<B>) -> Int<B>;
        fn int_min_dim(tensor: Int<B>, dim: usize) -> Int<B>;
        fn int_min_dim_with_indices(tensor: Int<B>, dim: usize) -> (Int<B>, Int<B>);
        fn int_abs(tensor: Int<B>) -> Int<B>;
        fn int_swap_dims(tensor: Int<B>, dim1: usize, dim2: usize) -> Int<B>;
        fn int_permute(tensor: Int<B>, axes: &[usize]) -> Int<B>;
        fn int_flip(tensor: Int<B>, axes: &[usize]) -> Int<B>;
        fn int_random(shape: Shape, distribution: Distribution, device: &Device<B>, dtype: IntDType) -> Int<B>;
        fn int_arange(range: Range<i64>, device: &Device<B>, dtype: IntDType) -> Int<B>;
        fn int_sign(tensor: Int<B>) -> Int<B>;
        fn int_expand(tensor: Int<B>, shape: Shape) -> Int<B>;
        fn int_sort(tensor: Int<B>, dim: usize, descending: bool) -> Int<B>;
        fn int_sort_with_indices(tensor: Int<B>, dim: usize, descending: bool) -> (Int<B>, Int<B>);
        fn int_argsort(tensor: Int<B>, dim: usize, descending: bool) -> Int<B>;
        fn bitwise_and(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn bitwise_and_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn bitwise_or(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn bitwise_or_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn bitwise_xor(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn bitwise_xor_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn bitwise_not(tensor: Int<B>) -> Int<B>;
        fn bitwise_left_shift(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn bitwise_left_shift_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn bitwise_right_shift(lhs: Int<B>, rhs: Int<B>) -> Int<B>;
        fn bitwise_right_shift_scalar(lhs: Int<B>, rhs: Scalar) -> Int<B>;
        fn int_cast(tensor: Int<B>, dtype: IntDType) -> Int<B>;
        fn int_unfold(tensor: Int<B>, dim: usize, size: usize, step: usize) -> Int<B>;
    }
}

impl<B: Backend> BoolTensorOps<Self> for Tape<B> {
    forward! { Autodiff<B> =>
        fn bool_empty(shape: Shape, device: &Device<B>, dtype: BoolDType) -> Bool<B>;
        fn bool_zeros(shape: Shape, device: &Device<B>, dtype: BoolDType) -> Bool<B>;
        fn bool_ones(shape: Shape, device: &Device<B>, dtype: BoolDType) -> Bool<B>;
        fn bool_into_data(tensor: Bool<B>) -> impl Future<Output = Read> + Send;
        fn bool_from_data(data: TensorData, device: &Device<B>) -> Bool<B>;
        fn bool_into_int(tensor: Bool<B>, out_dtype: IntDType) -> Int<B>;
        fn bool_into_float(tensor: Bool<B>, out_dtype: FloatDType) -> Float<B>;
        fn bool_device(tensor: &Bool<B>) -> Device<B>;
        fn bool_to_device(tensor: Bool<B>, device: &Device<B>) -> Bool<B>;
        fn bool_reshape(tensor: Bool<B>, shape: Shape) -> Bool<B>;
        fn bool_slice(tensor: Bool<B>, slices: &[Slice]) -> Bool<B>;
        fn bool_slice_assign(tensor: Bool<B>, slices: &[Slice], value: Bool<B>) -> Bool<B>;
        fn bool_mask_where(tensor: Bool<B>, mask: Bool<B>, value: Bool<B>) -> Bool<B>;
        fn bool_mask_fill(tensor: Bool<B>, mask: Bool<B>, value: Scalar) -> Bool<B>;
        fn bool_gather(dim: usize, tensor: Bool<B>, indices: Int<B>) -> Bool<B>;
        fn bool_scatter_or(dim: usize, tensor: Bool<B>, indices: Int<B>, value: Bool<B>) -> Bool<B>;
        fn bool_select(tensor: Bool<B>, dim: usize, indices: Int<B>) -> Bool<B>;
        fn bool_select_or(tensor: Bool<B>, dim: usize, indices: Int<B>, value: Bool<B>) -> Bool<B>;
        fn bool_repeat_dim(tensor: Bool<B>, dim: usize, times: usize) -> Bool<B>;
        fn bool_cat(tensors: Vec<Bool<B>>, dim: usize) -> Bool<B>;
        fn bool_equal(lhs: Bool<B>, rhs: Bool<B>) -> Bool<B>;
        fn bool_equal_elem(lhs: Bool<B>, rhs: Scalar) -> Bool<B>;
        fn bool_not(tensor: Bool<B>) -> Bool<B>;
        fn bool_and(lhs: Bool<B>, rhs: Bool<B>) -> Bool<B>;
        fn bool_or(lhs: Bool<B>, rhs: Bool<B>) -> Bool<B>;
        fn bool_xor(lhs: Bool<B>, rhs: Bool<B>) -> Bool<B>;
        fn bool_swap_dims(tensor: Bool<B>, dim1: usize, dim2: usize) -> Bool<B>;
        fn bool_permute(tensor: Bool<B>, axes: &[usize]) -> Bool<B>;
        fn bool_flip(tensor: Bool<B>, axes: &[usize]) -> Bool<B>;
        fn bool_expand(tensor: Bool<B>, shape: Shape) -> Bool<B>;
        fn bool_unfold(tensor: Bool<B>, dim: usize, size: usize, step: usize) -> Bool<B>;
    }
}

impl<B: Backend> QTensorOps<Self> for Tape<B> {
    forward! { Autodiff<B> =>
        fn q_from_data(data: TensorData, device: &Device<B>) -> Quantized<B>;
        fn quantize_dynamic(tensor: Float<B>, scheme: &QuantScheme) -> Quantized<B>;
        fn dequantize(tensor: Quantized<B>, dtype: FloatDType) -> Float<B>;
        fn q_device(tensor: &Quantized<B>) -> Device<B>;
        fn q_to_device(tensor: Quantized<B>, device: &Device<B>) -> Quantized<B>;
        fn q_reshape(tensor: Quantized<B>, shape: Shape) -> Quantized<B>;
        fn q_into_data(tensor: Quantized<B>) -> impl Future<Output = Read> + Send;
        fn q_expand(tensor: Quantized<B>, shape: Shape) -> Quantized<B>;
        fn q_swap_dims(tensor: Quantized<B>, dim1: usize, dim2: usize) -> Quantized<B>;
        fn q_permute(tensor: Quantized<B>, axes: &[usize]) -> Quantized<B>;
        fn q_flip(tensor: Quantized<B>, axes: &[usize]) -> Quantized<B>;
        fn q_select(tensor: Quantized<B>, dim: usize, indices: Int<B>) -> Quantized<B>;
        fn q_slice(tensor: Quantized<B>, slices: &[Slice]) -> Quantized<B>;
        fn q_gather(dim: usize, tensor: Quantized<B>, indices: Int<B>) -> Quantized<B>;
        fn q_argmax(tensor: Quantized<B>, dim: usize, out_dtype: IntDType) -> Int<B>;
        fn q_argmin(tensor: Quantized<B>, dim: usize, out_dtype: IntDType) -> Int<B>;
    }

    fn quantize(
        tensor: Float<B>,
        scheme: &QuantScheme,
        parameters: QuantizationParametersPrimitive<Self>,
    ) -> Quantized<B> {
        let scales = parameters.scales;
        Autodiff::<B>::quantize(tensor, scheme, QuantizationParametersPrimitive { scales })
    }
}

impl<B: Backend> TransactionOps<Self> for Tape<B> {
    fn tr_execute(
        transaction: TransactionPrimitive<Self>,
    ) -> impl Future<Output = Result<TransactionPrimitiveData, ExecutionError>> + Send {
        let of = transaction;
        Autodiff::<B>::tr_execute(TransactionPrimitive::new(
            of.read_floats,
            of.read_qfloats,
            of.read_ints,
            of.read_bools,
        ))
    }
}
