// How the kernels of mlx_convnextv2/ops/kernels divide their work: the Python package's ops/gpu.py in Swift. The fixture
// launches.json, which Python writes, holds both to each other.

/// Threadgroups in each direction and the threads of one, and the template's numbers.
package struct KernelLaunch: Equatable, Sendable {
    package let groups: [Int]
    package let threads: Int
    package let template: [String: Int]

    /// In threads, as MLX counts it.
    package var grid: (Int, Int, Int) { (groups[0] * threads, groups[1], groups[2]) }
}

package enum KernelGeometry {
    private static let lanes = 32  // of a simdgroup
    private static let mostThreads = 256  // of a threadgroup
    private static let tiles = [(4, 4), (2, 4), (1, 4), (1, 2)]  // rows and columns, the largest first
    private static let mostSums = 16  // that a thread of the depthwise kernel holds in registers
    private static let enoughThreadgroups = 64  // to keep a GPU busy
    private static let enoughStrips = 128
    private static let leastPixels = 32  // of a strip

    /// Of the depthwise kernel, whose threads hold their channels in registers.
    package static let mostChannels = 4096
    /// Of an image in the depthwise kernel, which counts places in 32 bits.
    package static let mostElements = Int(Int32.max)

    /// x (N, H, W, C): the largest tile that the registers hold and that leaves enough threadgroups, else the smallest.
    package static func depthwise(batch: Int, height: Int, width: Int, channels: Int) -> KernelLaunch {
        let each = ceil(channels, mostThreads)  // channels of a thread
        let threads = ceil(ceil(channels, each), lanes) * lanes
        let (rows, columns) =
            tiles.first { rows, columns in
                each * rows * columns <= mostSums
                    && batch * ceil(width, columns) * ceil(height, rows) >= enoughThreadgroups
            } ?? tiles[tiles.count - 1]
        return KernelLaunch(
            groups: [ceil(height, rows) * ceil(width, columns), batch, 1], threads: threads,
            template: ["CHANNELS_PER_THREAD": each, "ROWS": rows, "COLUMNS": columns])
    }

    /// A pass over hidden (N, P, D) in strips of pixels: as many as make enough threadgroups, and no more.
    package static func strips(batch: Int, pixels: Int, channels: Int) -> KernelLaunch {
        let vector = channels % 4 == 0 ? 4 : 1  // neighbouring channels of a thread
        let across = ceil(channels, vector * lanes)
        let strips = min(ceil(enoughStrips, across * batch), ceil(pixels, leastPixels))
        return KernelLaunch(groups: [across, strips, batch], threads: mostThreads, template: ["VECTOR": vector])
    }

    package static func scale(batch: Int, channels: Int) -> KernelLaunch {
        KernelLaunch(
            groups: [batch, 1, 1], threads: min(mostThreads, ceil(channels, lanes) * lanes), template: [:])
    }

    /// Whether GRN's factors cost fewer bytes on pwconv2's weight (C, 4C), for each image, than on its input (P, 4C).
    package static func scalesWeight(batch: Int, pixels: Int, channels: Int) -> Bool {
        (1 + batch) * channels < batch * pixels
    }

    private static func ceil(_ number: Int, _ divisor: Int) -> Int { (number + divisor - 1) / divisor }
}

/// A kernel's text and what goes in and out.
package struct KernelSource: Sendable {
    package let name: String
    package let inputs: [String]
    package let outputs: [String]
    package let header: String
    package let source: String
}
