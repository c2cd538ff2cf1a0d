import ConvNeXtV2Core
import MLX

/// The steps of a block that are kernels of our own on Metal. Sums and factors are float32 whatever the inputs.
protocol BlockOperations {
    /// Depthwise 7x7, padding 3, plus bias, then LayerNorm; and x + residualBias.
    ///
    /// x (N, H, W, C), taps (7, 7, C), the others (C,) and eps (1,) -> two of (N, H, W, C).
    func depthwiseLayerNormResidual(
        _ x: MLXArray, taps: MLXArray, bias: MLXArray, normWeight: MLXArray, normBias: MLXArray, eps: MLXArray,
        residualBias: MLXArray
    ) throws -> (MLXArray, MLXArray)

    /// hidden (N, P, D) -> GELU(hidden) and the sums of its squares over strips of pixels (N, strips, D).
    func geluSumOfSquares(_ hidden: MLXArray) throws -> (MLXArray, MLXArray)

    /// The sums of `geluSumOfSquares` alone.
    func sumOfSquaresOfGelu(_ hidden: MLXArray) throws -> MLXArray

    /// GRN as a factor for each channel: sums (N, strips, D), weight (D,) -> (N, D) in float32.
    func grnScale(_ sums: MLXArray, weight: MLXArray) throws -> MLXArray

    /// GELU(hidden) times the channels' factors: (N, P, D) and (N, D) -> (N, P, D).
    func geluScaled(_ hidden: MLXArray, scale: MLXArray) throws -> MLXArray
}

/// The kernels that the Python package launches: the same text, by the same rules.
struct MetalKernels: BlockOperations {
    private static let depthwise = kernel(.depthwiseLayerNormResidual)
    private static let geluSums = kernel(.geluSumOfSquares)
    private static let sumsOfGelu = kernel(.sumOfSquaresOfGelu)
    private static let scale = kernel(.grnScale)
    private static let scaled = kernel(.geluScaled)

    func depthwiseLayerNormResidual(
        _ x: MLXArray, taps: MLXArray, bias: MLXArray, normWeight: MLXArray, normBias: MLXArray, eps: MLXArray,
        residualBias: MLXArray
    ) throws -> (MLXArray, MLXArray) {
        let launch = KernelGeometry.depthwise(batch: x.dim(0), height: x.dim(1), width: x.dim(2), channels: x.dim(3))
        let outputs = try Self.run(
            Self.depthwise, [x, taps, bias, normWeight, normBias, eps, residualBias], launch, dtype: x.dtype,
            outputs: [(x.shape, x.dtype), (x.shape, x.dtype)])
        return (outputs[0], outputs[1])
    }

    func geluSumOfSquares(_ hidden: MLXArray) throws -> (MLXArray, MLXArray) {
        let launch = Self.strips(hidden)
        let outputs = try Self.run(
            Self.geluSums, [hidden], launch, dtype: hidden.dtype,
            outputs: [(hidden.shape, hidden.dtype), (Self.sums(hidden, launch), .float32)])
        return (outputs[0], outputs[1])
    }

    func sumOfSquaresOfGelu(_ hidden: MLXArray) throws -> MLXArray {
        let launch = Self.strips(hidden)
        return try Self.run(
            Self.sumsOfGelu, [hidden], launch, dtype: hidden.dtype, outputs: [(Self.sums(hidden, launch), .float32)])[0]
    }

    func grnScale(_ sums: MLXArray, weight: MLXArray) throws -> MLXArray {
        let launch = KernelGeometry.scale(batch: sums.dim(0), channels: sums.dim(2))
        return try Self.run(
            Self.scale, [sums, weight], launch, dtype: nil, outputs: [([sums.dim(0), sums.dim(2)], .float32)])[0]
    }

    func geluScaled(_ hidden: MLXArray, scale: MLXArray) throws -> MLXArray {
        try Self.run(
            Self.scaled, [hidden, scale], Self.strips(hidden), dtype: hidden.dtype,
            outputs: [(hidden.shape, hidden.dtype)])[0]
    }

    private static func strips(_ hidden: MLXArray) -> KernelLaunch {
        KernelGeometry.strips(batch: hidden.dim(0), pixels: hidden.dim(1), channels: hidden.dim(2))
    }

    private static func sums(_ hidden: MLXArray, _ launch: KernelLaunch) -> [Int] {
        [hidden.dim(0), launch.groups[1], hidden.dim(2)]
    }

    private static func kernel(_ kernel: KernelSource) -> MLXFast.MLXFastKernel {
        MLXFast.metalKernel(
            name: kernel.name, inputNames: kernel.inputs, outputNames: kernel.outputs, source: kernel.source,
            header: kernel.header)
    }

    private static func run(
        _ kernel: MLXFast.MLXFastKernel, _ inputs: [MLXArray], _ launch: KernelLaunch, dtype: DType?,
        outputs: [([Int], DType)]
    ) throws -> [MLXArray] {
        let types: [(String, any KernelTemplateArg)] = dtype.map { [("T", $0)] } ?? []
        let numbers: [(String, any KernelTemplateArg)] = launch.template.sorted { $0.key < $1.key }.map { ($0, $1) }
        // Thrown here: what comes of an operation that MLX refused must not be touched.
        return try withError {
            kernel(
                inputs, template: types + numbers, grid: launch.grid, threadGroup: (launch.threads, 1, 1),
                outputShapes: outputs.map(\.0), outputDTypes: outputs.map(\.1))
        }
    }
}
