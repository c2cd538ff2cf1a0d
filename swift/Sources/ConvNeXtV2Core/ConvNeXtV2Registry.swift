/// A published checkpoint.
public struct ConvNeXtV2Checkpoint: Equatable, Hashable, Sendable, Identifiable {
    /// Its repository on the Hugging Face Hub.
    public let id: String
    public let size: ConvNeXtV2Configuration.Size
    /// The side of its images in pixels.
    public let imageSize: Int
    /// Whether it was pre-trained on ImageNet-22k before ImageNet-1k. All of them tell the 1000 classes of the latter.
    public let isPretrainedOn22k: Bool
    /// Of the download, in float32.
    public let megabytes: Int
}

/// The 18 checkpoints that the authors published on the Hub, smallest first.
///
/// Any other repository or folder loads as well. The authors' own repository says that the weights are CC BY-NC 4.0, the
/// Hub says Apache 2.0: see to it before you sell an app with them.
public enum ConvNeXtV2Registry {
    public static let all: [ConvNeXtV2Checkpoint] = ConvNeXtV2Configuration.Size.allCases.flatMap(checkpoints)

    /// What the Python package takes where no model is named.
    public static let standard = checkpoint(.tiny, imageSize: 224, is22k: false)

    /// - Parameter id: of a repository.
    public static func checkpoint(id: String) -> ConvNeXtV2Checkpoint? { all.first { $0.id == id } }

    private static func checkpoints(_ size: ConvNeXtV2Configuration.Size) -> [ConvNeXtV2Checkpoint] {
        let from22k: [Int] =
            switch size {
            case .atto, .femto, .pico: []
            case .nano, .tiny, .base, .large: [224, 384]
            case .huge: [384, 512]
            }
        return [checkpoint(size, imageSize: 224, is22k: false)]
            + from22k.map { checkpoint(size, imageSize: $0, is22k: true) }
    }

    private static func checkpoint(
        _ size: ConvNeXtV2Configuration.Size, imageSize: Int, is22k: Bool
    ) -> ConvNeXtV2Checkpoint {
        ConvNeXtV2Checkpoint(
            id: "facebook/convnextv2-\(size.rawValue)-\(is22k ? "22k" : "1k")-\(imageSize)", size: size,
            imageSize: imageSize, isPretrainedOn22k: is22k, megabytes: megabytes(size))
    }

    private static func megabytes(_ size: ConvNeXtV2Configuration.Size) -> Int {
        switch size {
        case .atto: 15
        case .femto: 21
        case .pico: 36
        case .nano: 62
        case .tiny: 115
        case .base: 355
        case .large: 792
        case .huge: 2641
        }
    }
}
