//! The operations of modules, and activations.
//!
//! What is not here is the composition that the trait provides: embeddings, layer norm, softmax, CTC, unfolding, pools of
//! one dimension by those of two, and GELU, whose gradient `Autodiff` takes from an approximation.

use burn::tensor::ops::{
    ActivationOps, AttentionModuleOptions, ConvOptions, ConvTransposeOptions, DeformConv2dBackward,
    DeformConvOptions, FloatTensorOps, InterpolateOptions, MaxPool2dBackward, MaxPool2dWithIndices,
    ModuleOps,
};
use burn_backend::get_device_settings;
use burn_backend::ops::attention::attention_fallback;

use super::*;

impl<B: Backend> ActivationOps<Self> for Tape<B> {
    forward! { Autodiff<B> =>
        fn relu(tensor: Float<B>) -> Float<B>;
        fn sigmoid(tensor: Float<B>) -> Float<B>;
        fn log_sigmoid(tensor: Float<B>) -> Float<B>;
    }
}

/// Stops where an operation would be differentiated twice and cannot be.
fn refuse_in_training<B: Backend>(x: &Float<B>, operation: &str, modules: &str) {
    assert!(
        !B::ad_enabled(&Tape::<B>::float_device(x)),
        "{operation} ({modules}) cannot be differentiated twice in Burn 0.21, as WRITE on an autodiff backend needs: leave it \
         out of the model that is trained"
    );
}

/// A gradient that was to be recorded as an operation.
fn only_composed(operation: &str) -> ! {
    panic!("{operation} is not recorded on a Tape, where gradients are compositions")
}

/// `[…, rows, columns]` as one matrix.
fn as_matrix<B: Backend>(x: Float<B>) -> Float<B> {
    let shape = x.shape();
    let columns = shape[shape.num_dims() - 1];
    let rows = shape.num_elements() / columns.max(1);
    Tape::<B>::float_reshape(x, Shape::new([rows, columns]))
}

impl<B: Backend> ModuleOps<Self> for Tape<B> {
    /// One product of matrices instead of one for each sample, whose gradients to the weight would be summed.
    fn linear(x: Float<B>, weight: Float<B>, bias: Option<Float<B>>) -> Float<B> {
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        shape[last] = weight.shape()[1];
        let y = Self::float_matmul(as_matrix::<B>(x), weight);
        let y = match bias {
            Some(bias) => {
                let row = Shape::new([1, shape[last]]);
                Self::float_add(y, Self::float_reshape(bias, row))
            }
            None => y,
        };
        Self::float_reshape(y, shape)
    }

    fn attention(
        query: Float<B>,
        key: Float<B>,
        value: Float<B>,
        mask: Option<Bool<B>>,
        attn_bias: Option<Float<B>>,
        options: AttentionModuleOptions,
    ) -> Float<B> {
        attention_fallback::<Self>(query, key, value, mask, attn_bias, options)
    }

    /// The maxima are elements of `x`, gathered from where they are. Where a window has none (padding alone, or nothing above −∞),
    /// the backend's value stands.
    fn max_pool2d_with_indices(
        x: Float<B>,
        kernel_size: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        dilation: [usize; 2],
        ceil_mode: bool,
    ) -> MaxPool2dWithIndices<Self> {
        let values = B::float_detach(Self::inner(x.clone()));
        let pool = B::max_pool2d_with_indices;
        let pooled = pool(values, kernel_size, stride, padding, dilation, ceil_mode);
        let indices = B::int_clamp_min(pooled.indices, 0.into());
        let [batch, channels, height, width] = x.shape().dims();
        let [_, _, rows, columns] = indices.shape().dims();
        let flat = |n| Shape::new([batch, channels, n]);
        let at = B::int_reshape(indices.clone(), flat(rows * columns));
        let found = Self::float_gather(2, Self::float_reshape(x, flat(height * width)), at);
        let shape = Shape::new([batch, channels, rows, columns]);
        let found = Self::float_reshape(found, shape);
        let truth = get_device_settings::<B>(&B::float_device(&pooled.output)).bool_dtype;
        let values = B::float_detach(Self::inner(found.clone()));
        let none = B::float_not_equal(values, pooled.output.clone(), truth);
        let found = Self::float_mask_where(found, none, Self::from_inner(pooled.output));
        MaxPool2dWithIndices::new(found, indices)
    }

    fn max_pool2d(
        x: Float<B>,
        kernel_size: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        dilation: [usize; 2],
        ceil_mode: bool,
    ) -> Float<B> {
        let pool = Self::max_pool2d_with_indices;
        pool(x, kernel_size, stride, padding, dilation, ceil_mode).output
    }

    fn avg_pool2d(
        x: Float<B>,
        kernel_size: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        count_include_pad: bool,
        ceil_mode: bool,
    ) -> Float<B> {
        refuse_in_training::<B>(&x, "avg_pool2d", "AvgPool1d, AvgPool2d");
        let pool = Autodiff::<B>::avg_pool2d;
        pool(
            x,
            kernel_size,
            stride,
            padding,
            count_include_pad,
            ceil_mode,
        )
    }

    fn adaptive_avg_pool2d(x: Float<B>, output_size: [usize; 2]) -> Float<B> {
        let modules = "AdaptiveAvgPool1d, AdaptiveAvgPool2d";
        refuse_in_training::<B>(&x, "adaptive_avg_pool2d", modules);
        Autodiff::<B>::adaptive_avg_pool2d(x, output_size)
    }

    fn interpolate(x: Float<B>, output_size: [usize; 2], options: InterpolateOptions) -> Float<B> {
        refuse_in_training::<B>(&x, "interpolate", "Interpolate1d, Interpolate2d");
        Autodiff::<B>::interpolate(x, output_size, options)
    }

    fn deform_conv2d(
        x: Float<B>,
        offset: Float<B>,
        weight: Float<B>,
        mask: Option<Float<B>>,
        bias: Option<Float<B>>,
        options: DeformConvOptions<2>,
    ) -> Float<B> {
        refuse_in_training::<B>(&x, "deform_conv2d", "DeformConv2d");
        Autodiff::<B>::deform_conv2d(x, offset, weight, mask, bias, options)
    }

    forward! { Autodiff<B> =>
        fn conv1d(x: Float<B>, weight: Float<B>, bias: Option<Float<B>>, options: ConvOptions<1>) -> Float<B>;
        fn conv2d(x: Float<B>, weight: Float<B>, bias: Option<Float<B>>, options: ConvOptions<2>) -> Float<B>;
        fn conv3d(x: Float<B>, weight: Float<B>, bias: Option<Float<B>>, options: ConvOptions<3>) -> Float<B>;
        fn conv_transpose1d(x: Float<B>, weight: Float<B>, bias: Option<Float<B>>, options: ConvTransposeOptions<1>) -> Float<B>;
        fn conv_transpose2d(x: Float<B>, weight: Float<B>, bias: Option<Float<B>>, options: ConvTransposeOptions<2>) -> Float<B>;
        fn conv_transpose3d(x: Float<B>, weight: Float<B>, bias: Option<Float<B>>, options: ConvTransposeOptions<3>) -> Float<B>;
        fn rfft(signal: Float<B>, dim: usize, n: Option<usize>) -> (Float<B>, Float<B>);
        fn irfft(spectrum_re: Float<B>, spectrum_im: Float<B>, dim: usize, n: Option<usize>) -> Float<B>;
    }

    fn deform_conv2d_backward(
        _: Float<B>,
        _: Float<B>,
        _: Float<B>,
        _: Option<Float<B>>,
        _: Option<Float<B>>,
        _: Float<B>,
        _: DeformConvOptions<2>,
    ) -> DeformConv2dBackward<Self> {
        only_composed("deform_conv2d_backward")
    }

    fn avg_pool2d_backward(
        _: Float<B>,
        _: Float<B>,
        _: [usize; 2],
        _: [usize; 2],
        _: [usize; 2],
        _: bool,
        _: bool,
    ) -> Float<B> {
        only_composed("avg_pool2d_backward")
    }

    fn adaptive_avg_pool2d_backward(_: Float<B>, _: Float<B>) -> Float<B> {
        only_composed("adaptive_avg_pool2d_backward")
    }

    fn max_pool2d_with_indices_backward(
        _: Float<B>,
        _: [usize; 2],
        _: [usize; 2],
        _: [usize; 2],
        _: [usize; 2],
        _: bool,
        _: Float<B>,
        _: Int<B>,
    ) -> MaxPool2dBackward<Self> {
        only_composed("max_pool2d_with_indices_backward")
    }

    fn interpolate_backward(
        _: Float<B>,
        _: Float<B>,
        _: [usize; 2],
        _: InterpolateOptions,
    ) -> Float<B> {
        only_composed("interpolate_backward")
    }
}
