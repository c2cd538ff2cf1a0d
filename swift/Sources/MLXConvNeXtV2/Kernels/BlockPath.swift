import ConvNeXtV2Core
import Foundation
import MLX

/// How a model's blocks are computed.
enum BlockPath {
    case untried
    case kernels([[FusedBlock]])
    case plain(reason: String)

    var description: String {
        switch self {
        case .untried: "not tried yet"
        case .kernels: "our Metal kernels"
        case .plain(let reason): "MLX's operations: \(reason)"
        }
    }

    /// How far kernels may lie from MLX's operations after all blocks, as a part of the largest magnitude: some roundings
    /// of the dtype, and in float32 those of TF32, in which the newest GPUs multiply.
    private static let tolerances: [DType: Float] = [.float32: 2e-3, .float16: 0.02, .bfloat16: 0.16]

    /// Our kernels on a GPU, where they are as right as MLX's operations on the first image.
    ///
    /// The environment variable MLX_CONVNEXTV2_OPS=plain leaves them out, as for the Python package.
    static func choose(_ body: ConvNeXtV2Model, _ pixelValues: MLXArray) -> BlockPath {
        #if canImport(Metal)
        guard ProcessInfo.processInfo.environment["MLX_CONVNEXTV2_OPS"] != "plain" else {
            return .plain(reason: "MLX_CONVNEXTV2_OPS says so")
        }
        guard Device.defaultDevice().deviceType == .gpu else { return .plain(reason: "the device is the CPU") }
        return choose(body, pixelValues, MetalKernels())
        #else
        return .plain(reason: "there is no Metal")
        #endif
    }

    /// `choose`, for these operations.
    static func choose(
        _ body: ConvNeXtV2Model, _ pixelValues: MLXArray, _ operations: any BlockOperations
    ) -> BlockPath {
        let configuration = body.configuration
        guard configuration.hiddenAct == .gelu else { return .plain(reason: "the activation is not GELU") }
        guard configuration.hiddenSizes.allSatisfy({ $0 <= KernelGeometry.mostChannels }) else {
            return .plain(reason: "a stage has too many channels")
        }
        guard let tolerance = tolerances[body.embeddings.patchEmbeddings.weight.dtype] else {
            return .plain(reason: "the weights are of another type")
        }
        do {
            let (stages, distance) = try withError {
                let stages = body.encoder.stages.map { stage in stage.layers.map { FusedBlock($0, operations) } }
                let stem = body.embeddings(pixelValues)
                let expected = body.encoder(stem)[configuration.numStages].asType(.float32)
                let found = try run(body, stages, stem).asType(.float32)
                let distance = abs(found - expected).max() / abs(expected).max()
                eval(distance)
                return (stages, distance)
            }
            let part = distance.item(Float.self)
            guard part <= tolerance else {
                return .plain(reason: "the kernels' numbers differ by \(part) of the largest here")
            }
            return .kernels(stages)
        } catch {
            return .plain(reason: "the kernels do not run here (\(error.localizedDescription))")
        }
    }

    /// Whether the kernels can count the places of an image's stem.
    static func fits(_ pixelValues: MLXArray, _ configuration: ConvNeXtV2Configuration) -> Bool {
        let rows = pixelValues.dim(1) / configuration.patchSize.height
        let columns = pixelValues.dim(2) / configuration.patchSize.width
        return rows * columns * (configuration.hiddenSizes.max() ?? 0) <= KernelGeometry.mostElements
    }

    /// The stem's output -> the last stage's, through fused blocks.
    static func run(_ body: ConvNeXtV2Model, _ stages: [[FusedBlock]], _ stem: MLXArray) throws -> MLXArray {
        try zip(body.encoder.stages, stages).reduce(stem) { hidden, stage in
            let downsampled = stage.0.downsamplingLayer.reduce(hidden) { $1($0) }
            return try stage.1.reduce(downsampled) { try $1($0) }
        }
    }
}
