// swift-tools-version: 6.0
import PackageDescription

// MLXConvNeXtV2 is the model on mlx-swift. ConvNeXtV2Core is its part that needs no MLX: configuration, images, labels
// and the checks of a checkpoint's files. MLXConvNeXtV2Hub downloads checkpoints. See swift/README.md.
//
// CONVNEXTV2_WITHOUT_MLX=1 leaves out what depends on other packages, so that the rest builds and is tested without a
// network: SwiftPM fetches what any target of a root package needs.
let withMLX = Context.environment["CONVNEXTV2_WITHOUT_MLX"] == nil

let package = Package(
    name: "mlx-convnextv2",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [.library(name: "ConvNeXtV2Core", targets: ["ConvNeXtV2Core"])],
    targets: [
        .target(
            name: "CConvNeXtV2Image",
            path: "native",
            sources: ["src/prepare.cpp", "src/image_c.cpp"],
            publicHeadersPath: "swift",
            cxxSettings: [.headerSearchPath("include"), .headerSearchPath("src")]),
        .target(name: "ConvNeXtV2Core", dependencies: ["CConvNeXtV2Image"], path: "swift/Sources/ConvNeXtV2Core"),
        .target(
            name: "ClassifyCommand", dependencies: ["ConvNeXtV2Core"], path: "swift/Sources/ClassifyCommand"),
        .target(name: "TestFixtures", dependencies: ["ConvNeXtV2Core"], path: "swift/Tests/TestFixtures"),
        .testTarget(
            name: "ConvNeXtV2CoreTests", dependencies: ["ConvNeXtV2Core", "ClassifyCommand", "TestFixtures"],
            path: "swift/Tests/ConvNeXtV2CoreTests"),
    ],
    swiftLanguageModes: [.v6],
    cxxLanguageStandard: .cxx20
)

if withMLX {
    package.dependencies += [
        .package(url: "https://github.com/ml-explore/mlx-swift", .upToNextMinor(from: "0.32.3")),
        .package(url: "https://github.com/huggingface/swift-huggingface", .upToNextMinor(from: "0.8.1")),
    ]
    package.products += [
        .library(name: "MLXConvNeXtV2", targets: ["MLXConvNeXtV2"]),
        .library(name: "MLXConvNeXtV2Hub", targets: ["MLXConvNeXtV2Hub"]),
        .executable(name: "mlx-convnextv2", targets: ["mlx-convnextv2"]),
    ]
    package.targets += [
        .target(
            name: "MLXConvNeXtV2",
            dependencies: [
                "ConvNeXtV2Core", .product(name: "MLX", package: "mlx-swift"),
                .product(name: "MLXNN", package: "mlx-swift"),
            ],
            path: "swift/Sources/MLXConvNeXtV2"),
        .target(
            name: "MLXConvNeXtV2Hub",
            dependencies: ["ConvNeXtV2Core", .product(name: "HuggingFace", package: "swift-huggingface")],
            path: "swift/Sources/MLXConvNeXtV2Hub"),
        .executableTarget(
            name: "mlx-convnextv2", dependencies: ["MLXConvNeXtV2", "MLXConvNeXtV2Hub", "ClassifyCommand"],
            path: "swift/Sources/mlx-convnextv2"),
        .testTarget(
            name: "MLXConvNeXtV2Tests", dependencies: ["MLXConvNeXtV2", "TestFixtures"],
            path: "swift/Tests/MLXConvNeXtV2Tests"),
    ]
}
