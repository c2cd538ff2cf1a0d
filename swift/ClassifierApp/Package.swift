// swift-tools-version: 6.0
import PackageDescription

// The app on the package above. It is a package of its own, so that no one who depends on that takes it along. Its
// Info.plist goes into the program, because macOS asks there why an app wants the camera.
let package = Package(
    name: "ClassifierApp",
    platforms: [.macOS(.v14)],
    dependencies: [.package(name: "mlx-convnextv2", path: "../..")],
    targets: [
        .executableTarget(
            name: "ClassifierApp",
            dependencies: [
                .product(name: "MLXConvNeXtV2", package: "mlx-convnextv2"),
                .product(name: "MLXConvNeXtV2Hub", package: "mlx-convnextv2"),
            ],
            exclude: ["Info.plist"],
            linkerSettings: [
                .unsafeFlags([
                    "-Xlinker", "-sectcreate", "-Xlinker", "__TEXT", "-Xlinker", "__info_plist", "-Xlinker",
                    "\(Context.packageDirectory)/Sources/ClassifierApp/Info.plist",
                ])
            ])
    ],
    swiftLanguageModes: [.v6]
)
