import ConvNeXtV2Core
import Foundation
import MLX

// Made of MLX's own operations, one by one, as the Python package's plain path is: the numbers are the same bit for bit.
// MLXNN's gelu and silu are compiled, which rounds in other places, and on Linux asks for a C++ compiler at run time.

enum Activations {
    /// The exact GELU, x * Phi(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415). Any shape, kept; dtype kept.
    static func gelu(_ x: MLXArray) -> MLXArray {
        x * (number(1, x) + erf(x * number(0.5.squareRoot(), x))) * number(0.5, x)
    }

    /// The tanh approximation of GELU (section 2 of arXiv:1606.08415). Any shape, kept; dtype kept.
    static func geluTanh(_ x: MLXArray) -> MLXArray {
        let inner = number((2 / Double.pi).squareRoot(), x) * (x + number(0.044715, x) * pow(x, number(3, x)))
        return number(0.5, x) * x * (number(1, x) + tanh(inner))
    }

    /// x * sigmoid(x), also called swish. Any shape, kept; dtype kept.
    static func silu(_ x: MLXArray) -> MLXArray {
        x * sigmoid(x)
    }

    /// Klambauer et al. 2017, arXiv:1706.02515. Any shape, kept; dtype kept.
    static func selu(_ x: MLXArray) -> MLXArray {
        let negative = number(1.6732632423543772, x) * (exp(minimum(x, number(0, x))) - number(1, x))
        return number(1.0507009873554805, x) * which(x .> number(0, x), x, negative)
    }
}

/// A number in the dtype of an array. (mlx-swift has no float16 numbers on x86.)
private func number(_ value: Double, _ like: MLXArray) -> MLXArray {
    MLXArray(Float(value)).asType(like.dtype)
}

extension ConvNeXtV2Configuration.Activation {
    var function: (MLXArray) -> MLXArray {
        switch self {
        case .gelu: Activations.gelu
        case .geluNew, .geluPyTorchTanh: Activations.geluTanh
        case .relu: { maximum(number(0, $0), $0) }
        case .silu, .swish: Activations.silu
        case .selu: Activations.selu
        }
    }
}

/// GRN (section 4 of the ConvNeXt V2 paper, arXiv:2301.00808): each channel divided by the mean of all channels' norms.
///
/// x (N, H, W, D), weight and bias (1, 1, 1, D) -> (N, H, W, D). The sum over H and W is float32 whatever the dtype:
/// float16 would overflow.
func globalResponseNorm(_ x: MLXArray, weight: MLXArray, bias: MLXArray) -> MLXArray {
    let sumOfSquares = square(x.asType(.float32)).sum(axes: [1, 2], keepDims: true)  // (N, 1, 1, D)
    let globalFeatures = sqrt(maximum(sumOfSquares, Float.leastNormalMagnitude))
    let normFeatures = globalFeatures / (globalFeatures.mean(axis: -1, keepDims: true) + 1e-6)
    return weight * (x * normFeatures.asType(x.dtype)) + bias + x
}
