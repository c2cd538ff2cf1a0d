import ConvNeXtV2Core
import MLX
import MLXNN

/// A block's weights as its kernels take them: the Python package's inference/gpu_block.py in Swift.
///
/// A constant before a linear layer is one behind it, so that GRN's bias joins pwconv2's own in `residualBias`.
struct FusedBlock {
    private let operations: any BlockOperations
    private let taps: MLXArray  // (7, 7, C)
    private let bias: MLXArray  // (C,)
    private let norm: LayerNorm
    private let eps: MLXArray
    private let pwconv1: Linear
    private let grnWeight: MLXArray  // (4C,)
    private let pwconv2: Linear
    private let residualBias: MLXArray  // (C,) in float32

    init(_ layer: ConvNeXtV2Layer, _ operations: any BlockOperations) {
        self.operations = operations
        taps = contiguous(layer.dwconv.weight.squeezed(axis: 3).transposed(1, 2, 0))  // (C, 7, 7, 1) -> (7, 7, C)
        bias = layer.dwconv.bias
        norm = layer.layernorm
        eps = MLXArray([layer.layernorm.eps])
        pwconv1 = layer.pwconv1
        grnWeight = layer.grn.weight.flattened()
        pwconv2 = layer.pwconv2
        let beta = layer.grn.bias.flattened()  // (1, 1, 1, 4C) -> (4C,)
        let own = layer.pwconv2.bias ?? MLXArray.zeros([bias.dim(0)])
        if layer.pwconv2 is QuantizedLinear {
            residualBias = (layer.pwconv2(beta[.newAxis])[0] - own).asType(.float32)
        } else {
            let weight = layer.pwconv2.weight.asType(.float32)
            residualBias = matmul(weight, beta.asType(.float32)) + own.asType(.float32)
        }
        eval(taps, residualBias, eps)  // constants, so that no graph computes them again
    }

    /// (N, H, W, C) -> (N, H, W, C) in six kernels, two of them matrix products.
    func callAsFunction(_ hiddenStates: MLXArray) throws -> MLXArray {
        let (batch, channels) = (hiddenStates.dim(0), hiddenStates.dim(3))
        let (normed, residual) = try operations.depthwiseLayerNormResidual(
            hiddenStates, taps: taps, bias: bias, normWeight: norm.weight!, normBias: norm.bias!, eps: eps,
            residualBias: residualBias)  // the model's norms all have both
        let hidden = pwconv1(normed.reshaped(batch, -1, channels))  // (N, H * W, C) -> (N, H * W, 4C)
        return try project(hidden, residual.reshaped(batch, -1, channels)).reshaped(hiddenStates.shape)
    }

    /// GELU, GRN, pwconv2 and the sum with the residual: (N, P, 4C) and (N, P, C) -> (N, P, C).
    private func project(_ hidden: MLXArray, _ residual: MLXArray) throws -> MLXArray {
        let isQuantized = pwconv2 is QuantizedLinear
        let (batch, pixels, channels) = (residual.dim(0), residual.dim(1), residual.dim(2))
        guard !isQuantized, KernelGeometry.scalesWeight(batch: batch, pixels: pixels, channels: channels) else {
            let scale = try operations.grnScale(operations.sumOfSquaresOfGelu(hidden), weight: grnWeight)  // (N, 4C)
            let activations = try operations.geluScaled(hidden, scale: scale)
            return isQuantized
                ? residual + pwconv2(activations) : addMM(residual, activations, pwconv2.weight.swappedAxes(-1, -2))
        }
        let (activations, sums) = try operations.geluSumOfSquares(hidden)
        let scale = try operations.grnScale(sums, weight: grnWeight)  // (N, 4C)
        let weight = (pwconv2.weight * scale.expandedDimensions(axis: 1)).asType(hidden.dtype)  // -> (N, C, 4C)
        return addMM(residual, activations, weight.swappedAxes(-1, -2))
    }
}
