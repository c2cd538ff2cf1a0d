import ConvNeXtV2Core
import MLX
import MLXNN

/// Makes a model's layers: without random weights, which a checkpoint replaces anyway, and quantized where it says so.
///
/// Weights are zeros that take no memory until they are used. MLXNN's own constructors draw random numbers.
struct LayerFactory {
    let quantization: ConvNeXtV2Quantization?
    /// Paths of the quantized layers.
    var quantized: Set<String> = []

    func linear(_ path: String, _ inputs: Int, _ outputs: Int) throws -> Linear {
        let bias = MLXArray.zeros([outputs])
        guard quantized.contains(path) else {
            return Linear(weight: MLXArray.zeros([outputs, inputs]), bias: bias)
        }
        guard let quantization else {
            throw ConvNeXtV2Error.invalid(
                "the weights are quantized, and config.json has no \"quantization\" entry: convert the model again")
        }
        let groupSize = try quantization.groupSize(of: path, inputs: inputs)
        let groups = [outputs, inputs / groupSize]
        let isAffine = quantization.mode == .affine
        return QuantizedLinear(
            weight: MLXArray.zeros([outputs, inputs * quantization.bits / 32], dtype: .uint32), bias: bias,
            scales: MLXArray.zeros(groups, dtype: isAffine ? .float32 : .uint8),
            biases: isAffine ? MLXArray.zeros(groups) : nil, groupSize: groupSize, bits: quantization.bits,
            mode: quantization.mode.inMLX)
    }

    func convolution(
        _ inputs: Int, _ outputs: Int, kernel: (Int, Int), stride: (Int, Int) = (1, 1), padding: Int = 0,
        groups: Int = 1
    ) -> ConvNeXtV2Convolution {
        ConvNeXtV2Convolution(
            weight: MLXArray.zeros([outputs, kernel.0, kernel.1, inputs / groups]), bias: MLXArray.zeros([outputs]),
            stride: stride, padding: padding, groups: groups)
    }
}

extension ConvNeXtV2Quantization.Mode {
    var inMLX: QuantizationMode {
        switch self {
        case .affine: .affine
        case .mxfp4: .mxfp4
        case .mxfp8: .mxfp8
        case .nvfp4: .nvfp4
        }
    }
}

/// A convolution: weight (out, height, width, in), bias (out,); (N, H, W, in) -> (N, H', W', out).
public final class ConvNeXtV2Convolution: Module, UnaryLayer {
    let weight: MLXArray
    let bias: MLXArray
    private let stride: (Int, Int)
    private let padding: Int
    private let groups: Int

    init(weight: MLXArray, bias: MLXArray, stride: (Int, Int), padding: Int, groups: Int) {
        self.weight = weight
        self.bias = bias
        self.stride = stride
        self.padding = padding
        self.groups = groups
    }

    public func callAsFunction(_ x: MLXArray) -> MLXArray {
        conv2d(x, weight, stride: .init(stride), padding: .init(padding), groups: groups) + bias
    }
}
